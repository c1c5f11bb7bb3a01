// Package nodejs tells which files a program of Node.js reads before it gets there: its
// modules name what they load, in their text, and packages name their main modules.
// Nothing is run. What it says is a guess: code that runs later, and names that are
// computed, are left out.
//
// How names are resolved is said in the documentation of Node.js, "Modules: CommonJS
// modules", "Modules: ECMAScript modules" and "Modules: Packages".
package nodejs
