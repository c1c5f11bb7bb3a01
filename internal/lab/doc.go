// Package lab is for experiments on one machine with real parts: it builds
// images out of Debian packages, runs a registry that counts what it serves
// and can be made slow, compares directory trees, and measures how long a
// program takes to start from an image.
//
// The demonstration, the end-to-end tests and the benchmarks stand on it. No
// daemon does, and it imports nothing of ours: what is measured is handed in.
package lab
