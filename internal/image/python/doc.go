// Package python says which files a Python program will read, from those it has
// read: a module names the modules it imports. It executes nothing, and reads no
// files itself.
//
// Modules are found as the interpreter's path finder does (Python Language
// Reference, 5.5): packages, extension modules, sources and what they are compiled
// to (PEP 3147). What runs when a module is loaded, its own code and the bodies of
// its classes, is looked at; what only runs when a function is called is not. All of
// it is a guess: modules put into the search path by the program, import hooks and
// conditions are not followed.
package python
