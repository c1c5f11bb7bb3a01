// Package holder keeps open descriptors beyond the death of the process that
// opened them.
//
// A FUSE mount fails for its readers the moment nobody has its connection
// open. The holder is a process of its own that does nothing but have it open,
// so that a daemon that was killed, or is being replaced, is a pause for
// readers and not an error: the next daemon gets the connection from it.
//
// The holder listens on a Unix socket. A conversation is one packet each way
// (see wire.go), so neither side keeps a connection that could break; only
// root and the holder's own user are listened to. A lock file beside the
// socket makes sure that there is one holder per socket. It never reads or
// writes what it holds, and ends when told, or when it has held nothing for a
// while.
package holder
