// Package layerdev makes the data of a lazily mounted layer readable before
// it has arrived. It has two halves.
//
// A [Layer] is the chunk cache of one layer: the layer's flat data in a sparse
// file, and a record of which chunks in it have been fetched, verified and
// written. Whoever reads what is missing waits until it has been fetched, once
// however many wait.
//
// A [Device] is a FUSE mount that shows each layer as one read-only file, for
// EROFS to be mounted over. It speaks the kernel's protocol itself, so that
// another process can take its connection over in the middle of a read.
//
// # What survives
//
// A layer's folder holds "index" (which chunk comes from where), "data" (the
// flat data) and "present" (the record of chunks, see journal); "present" is
// renamed to "complete" when nothing is missing. A chunk counts as present
//
//   - after the process ended in any way, if it had been recorded;
//   - after the machine ended in any way, if a checkpoint had followed its
//     record. A checkpoint makes the data durable and then says so in the
//     record; there is one for every 64 MiB written, on Close and on
//     completion;
//   - never, if the record is damaged at it or before it.
//
// What does not count is fetched again when it is wanted.
package layerdev
