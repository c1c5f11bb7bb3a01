package store

import (
	"fmt"
	"hash"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
)

// checkpointEvery is how many bytes of one blob may be kept before they are
// made durable; it bounds what is read again after a crash.
const checkpointEvery = 64 << 20

// entry is one blob: its files and what is known about them. It exists while
// the blob is on disk or somebody holds it.
type entry struct {
	// Constant.
	s      *Store
	digest digest.Digest
	dir    string

	// Guarded by s.mu.
	refs     int // holders: open blobs, fetches, and whoever works on it
	opens    int // open blobs alone
	lastUsed time.Time
	bytes    int64 // of pieces on disk, as counted in s.used; set by account

	// mu guards what follows. It is not held during I/O on data, except while
	// the entry is loaded, created or erased. Order: mu, flight.mu, s.mu.
	mu      sync.Mutex
	loaded  bool // from disk, or found not to be there
	created bool // the files exist
	durable bool // names and info.json were synced
	sized   bool // geo and what follows is set
	geo     geometry
	info    info
	pieces
	checked bitmap // pieces whose CRC was compared, or that were written, since loading
	resets  int    // how often the content turned out to be wrong
	drops   int    // how often a piece was forgotten
	data    *file  // nil when not open; so is journal
	journal *file
	dirty   int64 // bytes kept since the last checkpoint
	flights []*flight
	changed chan struct{} // closed when a flight ends or a verdict is there; nil when nobody waits

	hashing bool // a goroutine owns hasher and hashed
	stale   bool // a hashed piece was dropped
	hasher  hash.Hash
	hashed  int // pieces in hasher
	// With a DigestDelay: somebody waits for the verdict; since when all is
	// here and nobody does.
	eager    bool
	unjudged time.Time
}

func newEntry(s *Store, d digest.Digest) *entry {
	return &entry{s: s, digest: d, dir: blobDir(s.root, d)}
}

func (e *entry) path(name string) string { return filepath.Join(e.dir, name) }

// readInfo reads info.json; an error that isMissing means there is no blob.
func (e *entry) readInfo() (info, error) {
	p, err := e.s.fs.readFile(e.path(infoName), infoLimit)
	if err != nil {
		return info{}, err
	}
	i, err := decodeInfo(p)
	if err == nil && i.Digest != e.digest {
		err = blob.Errorf(blob.Corrupt, "%s is that of %s", infoName, i.Digest)
	}
	return i, err
}

// survey finds out, without reading the journal, whether the blob is on disk,
// how much room it takes and when it was used. For Open, before anybody else
// knows e.
func (e *entry) survey() (known bool, err error) {
	if _, err := e.readInfo(); err != nil {
		if isMissing(err) {
			return false, nil
		}
		return false, err
	}
	st, err := os.Stat(e.path(infoName))
	if err != nil {
		return false, err
	}
	e.lastUsed = st.ModTime()
	if bytes, err := allocated(e.path(dataName)); err == nil {
		e.account(bytes)
	}
	return true, nil
}

// account adds n, which may be negative, to the bytes e takes on disk.
func (e *entry) account(n int64) {
	e.s.mu.Lock()
	e.bytes += n
	e.s.mu.Unlock()
	e.s.used.Add(n)
	if n < 0 && e.s.cfg.Lost != nil {
		e.s.cfg.Lost(e.digest)
	}
}

// occupied returns how many bytes e takes on disk.
func (e *entry) occupied() int64 {
	e.s.mu.Lock()
	defer e.s.mu.Unlock()
	return e.bytes
}

// load reads what is on disk, once. What cannot be read is erased: it can be
// fetched again. Caller holds e.mu and e.
func (e *entry) load() {
	if e.loaded {
		return
	}
	e.loaded = true
	err := e.loadFiles()
	switch {
	case err == nil:
	case isMissing(err) && !e.created:
	default:
		e.s.log.Warn("dropping a blob that cannot be read", "digest", e.digest, "error", err)
		if err := e.erase(); err != nil {
			e.s.log.Warn("cannot erase it", "digest", e.digest, "error", err)
		}
	}
}

func (e *entry) loadFiles() error {
	i, err := e.readInfo()
	if err != nil {
		return err
	}
	e.created = true
	e.setGeometry(i)
	raw, err := e.s.fs.readFile(e.path(journalName), 1<<30)
	if err != nil {
		return err
	}
	state, doubtful := decodeJournal(raw, e.geo.pieces)
	e.pieces = state
	if err := e.openFiles(); err != nil {
		return err
	}
	if valid := int64(e.records) * recordSize; valid != int64(len(raw)) {
		// Appending behind a damaged record would hide what is appended, and
		// whole records behind it must not come back to life.
		if err := e.journal.truncate(valid); err != nil {
			return err
		}
	}
	e.account(e.presentBytes() - e.occupied())
	e.recheck(doubtful)
	if e.missing() == 0 && !e.complete {
		e.kickHash()
	}
	return nil
}

// recheck compares the CRC of pieces that a crash may have torn.
func (e *entry) recheck(doubtful []int) {
	if len(doubtful) == 0 {
		return
	}
	buf := getBuffer(e.geo.pieceSize)
	defer putBuffer(buf)
	for _, i := range doubtful {
		if !e.present.has(i) || e.checked.has(i) {
			continue
		}
		p := buf[:e.geo.length(i)]
		_, err := e.data.readAt(p, e.geo.start(i))
		if err == nil && checksum(p) == e.crcs[i] {
			e.checked.set(i)
			e.soil(e.geo.length(i))
			continue
		}
		e.s.count.crcFailures.Add(1)
		e.drop(i)
	}
}

// soil notes n bytes that are not known to be durable. Caller holds e.mu.
func (e *entry) soil(n int64) {
	e.dirty += n
	if e.dirty >= checkpointEvery {
		wake(e.s.kick)
	} else {
		wake(e.s.dirty)
	}
}

// setGeometry says how long the blob is. Caller holds e.mu.
func (e *entry) setGeometry(i info) {
	e.info = i
	e.sized = true
	e.geo = geometryOf(i.Size, i.PieceSize)
	e.pieces = newPieces(e.geo.pieces)
	e.checked = newBitmap(e.geo.pieces)
	e.forgetHash()
}

func (e *entry) forgetHash() {
	if e.hashing {
		e.stale = true
	} else {
		e.hasher, e.hashed = nil, 0
	}
}

// missing returns how many pieces are not there. Caller holds e.mu.
func (e *entry) missing() int { return e.geo.pieces - e.present.count() }

// presentBytes returns how much of the blob is there. Caller holds e.mu.
func (e *entry) presentBytes() int64 {
	n := int64(e.present.count()) * e.geo.pieceSize
	if last := e.geo.pieces - 1; last >= 0 && e.present.has(last) {
		n -= e.geo.pieceSize - e.geo.length(last)
	}
	return n
}

// openFiles opens data and journal where they are not. Caller holds e.mu.
func (e *entry) openFiles() (err error) {
	if e.data == nil {
		if e.data, err = e.s.fs.open(e.path(dataName)); err != nil {
			return err
		}
	}
	if e.journal == nil {
		e.journal, err = e.s.fs.open(e.path(journalName))
	}
	return err
}

// create makes the blob's files, info.json last: a folder without it is
// nothing. Nothing is synced; the first checkpoint does that. Caller holds
// e.mu.
func (e *entry) create() error {
	text, err := encodeInfo(e.info)
	if err != nil {
		return err
	}
	if err := e.s.fs.mkdirAll(e.dir); err != nil {
		return err
	}
	e.closeFiles()
	if e.data, err = e.s.fs.create(e.path(dataName)); err != nil {
		return err
	}
	if err = e.data.truncate(e.geo.size); err != nil {
		return err
	}
	if e.journal, err = e.s.fs.create(e.path(journalName)); err != nil {
		return err
	}
	tmp, err := e.s.fs.create(e.path(infoTempName))
	if err != nil {
		return err
	}
	err = tmp.writeAt(text, 0)
	tmp.close()
	if err != nil {
		return err
	}
	if err := e.s.fs.rename(e.path(infoTempName), e.path(infoName)); err != nil {
		return err
	}
	e.created, e.durable = true, false
	return nil
}

// writable returns the data file, made where it is not. Caller holds e.mu.
func (e *entry) writable() (*file, error) {
	if !e.created {
		if err := e.create(); err != nil {
			e.closeFiles()
			return nil, err
		}
	}
	if err := e.openFiles(); err != nil {
		return nil, err
	}
	return e.data, nil
}

// append writes rs to the journal and folds them in; on an error neither
// happened. Caller holds e.mu.
func (e *entry) append(rs ...record) error {
	if err := e.openFiles(); err != nil {
		return err
	}
	p := make([]byte, 0, len(rs)*recordSize)
	for _, r := range rs {
		p = r.encode(p)
	}
	if err := e.journal.writeAt(p, int64(e.records)*recordSize); err != nil {
		return err
	}
	for _, r := range rs {
		e.apply(r)
	}
	return nil
}

// keep notes that the pieces of rs, at least one, were written, and returns
// how many bytes they have. Caller holds e.mu.
func (e *entry) keep(rs []record) (n int64, err error) {
	if err := e.append(rs...); err != nil {
		return 0, err
	}
	next := false
	for _, r := range rs {
		i := int(r.index)
		n += e.geo.length(i)
		e.checked.set(i)
		next = next || i == e.hashed
	}
	e.account(n)
	e.soil(n)
	switch {
	case e.s.cfg.DigestDelay == 0 || e.eager || !blob.Verifiable(e.digest):
		if next || e.missing() == 0 {
			e.kickHash()
		}
	case e.missing() == 0:
		e.unjudged = time.Now()
		wake(e.s.dirty)
	}
	return n, nil
}

// drop forgets piece i. That the journal cannot be told is no reason to keep
// it: its CRC will tell the next process. Caller holds e.mu.
func (e *entry) drop(i int) {
	if !e.present.has(i) {
		return
	}
	if err := e.append(record{kind: recDropped, index: uint32(i)}); err != nil {
		e.s.log.Warn("cannot note that a piece is dropped", "digest", e.digest, "piece", i, "error", err)
		e.present.unset(i)
		e.complete = false
	}
	e.drops++
	e.checked.unset(i)
	e.account(-e.geo.length(i))
	if i < e.hashed || e.hashing && i == e.hashed {
		e.forgetHash()
	}
}

// reset forgets all pieces: together they are not what the digest promised.
// The bytes stay where they are until they are replaced, because most of them
// may be right and somebody may be reading them. Caller holds e.mu.
func (e *entry) reset() error {
	held := e.presentBytes()
	err := e.append(record{kind: recReset})
	if err != nil {
		e.present.clear()
		e.complete = false
	}
	e.resets++
	e.drops++
	e.checked.clear()
	e.dirty = 0
	e.account(-held)
	return err
}

// erase removes the blob from disk and from memory, which nobody may be
// using. Caller holds e.mu.
func (e *entry) erase() error {
	e.closeFiles()
	e.account(-e.occupied())
	e.created, e.sized, e.dirty = false, false, 0
	e.geo, e.pieces = geometry{}, pieces{}
	return e.removeFiles()
}

// removeFiles deletes the blob's folder, info.json first: what remains after
// an interruption is then nothing.
func (e *entry) removeFiles() error {
	for _, name := range []string{infoName, infoTempName, journalName, dataName, ""} {
		if err := e.s.fs.remove(e.path(name)); err != nil {
			return err
		}
	}
	return nil
}

// closeFiles gives the descriptors back. Caller holds e.mu.
func (e *entry) closeFiles() {
	if e.data != nil {
		e.data.close()
	}
	if e.journal != nil {
		e.journal.close()
	}
	e.data, e.journal = nil, nil
}

// close is closeFiles at the end of the store.
func (e *entry) close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closeFiles()
}

// rest is called when nobody holds e any more.
func (e *entry) rest() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.s.idle(e) {
		return
	}
	e.closeFiles()
	if e.s.ctx.Err() != nil {
		return
	}
	if e.created && e.missing() == e.geo.pieces {
		// Dropped bytes still take room.
		if err := e.erase(); err != nil {
			e.s.log.Warn("cannot erase an empty blob", "digest", e.digest, "error", err)
		}
	}
	if e.loaded && !e.created {
		e.s.forget(e)
	}
}

// opened notes that a caller opened the blob.
func (e *entry) opened() {
	e.s.mu.Lock()
	defer e.s.mu.Unlock()
	e.opens++
	e.lastUsed = time.Now()
}

// closed notes that it does not use it any more, on disk too: the time of
// info.json orders eviction after a restart.
func (e *entry) closed() {
	t := time.Now()
	e.s.mu.Lock()
	e.opens--
	e.lastUsed = t
	e.s.mu.Unlock()
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.created && e.s.ctx.Err() == nil {
		// Only the order of eviction suffers where this fails.
		_ = e.s.fs.touch(e.path(infoName), t)
	}
}

// checkpoint makes what was kept durable and says so in the journal. Where
// that fails, nothing kept is believed any more before its CRC was compared.
// Caller holds e, but not e.mu.
func (e *entry) checkpoint() error {
	e.mu.Lock()
	if e.dirty == 0 || !e.created {
		e.mu.Unlock()
		return nil
	}
	if err := e.openFiles(); err != nil {
		e.mu.Unlock()
		return err
	}
	covers, kept, data, journal, durable := e.records, e.dirty, e.data, e.journal, e.durable
	e.mu.Unlock()

	err := data.sync()
	if err == nil && !durable {
		err = e.syncNames()
	}
	e.mu.Lock()
	if err == nil {
		e.durable = true
		err = e.append(record{kind: recCheckpoint, index: covers})
	}
	if err != nil {
		e.checked.clear()
	} else {
		e.dirty = max(0, e.dirty-kept)
	}
	e.mu.Unlock()
	if err == nil {
		err = journal.sync()
	}
	if err != nil {
		return fmt.Errorf("sync blob %s: %w", e.digest, err)
	}
	return nil
}

// syncNames makes info.json and the folders that lead to it durable.
func (e *entry) syncNames() error {
	if err := e.s.fs.syncFile(e.path(infoName)); err != nil {
		return err
	}
	for dir := e.dir; ; dir = filepath.Dir(dir) {
		if err := e.s.fs.syncDir(dir); err != nil || dir == e.s.root {
			return err
		}
	}
}

// covering returns the flight that is fetching piece i or will. Caller holds
// e.mu.
func (e *entry) covering(i int) *flight {
	for _, f := range e.flights {
		if f.covers(i) {
			return f
		}
	}
	return nil
}

// available returns how many pieces from i on are missing and in no flight,
// at most n. Caller holds e.mu.
func (e *entry) available(i, n int) int {
	for _, f := range e.flights {
		n = f.clip(i, n)
	}
	for k := range n {
		if e.present.has(i + k) {
			return k
		}
	}
	return n
}

// remove takes f out of the table. Caller holds e.mu.
func (e *entry) remove(f *flight) {
	e.flights = slices.DeleteFunc(e.flights, func(g *flight) bool { return g == f })
	e.broadcast()
}

// broadcast wakes who waits for changed. Caller holds e.mu.
func (e *entry) broadcast() {
	if e.changed != nil {
		close(e.changed)
		e.changed = nil
	}
}

// wait returns a channel that is closed at the next broadcast. Caller holds
// e.mu.
func (e *entry) wait() <-chan struct{} {
	if e.changed == nil {
		e.changed = make(chan struct{})
	}
	return e.changed
}
