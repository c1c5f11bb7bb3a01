package image

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
	"skimmer/internal/estargz"
	"skimmer/internal/image/profile"
	"skimmer/internal/image/trace"
	"skimmer/internal/layerdev"
)

const (
	// maxRecording is how long a start is watched at most: what a service reads
	// after that belongs to its work.
	maxRecording = 2 * time.Minute
	// maxTraceEvents is how many events of a start are kept, maxTraces of how
	// many starts they are.
	maxTraceEvents = 1024
	maxTraces      = 32
	// togetherFor is how far apart in time chunks may be read that make one
	// entry of a profile.
	togetherFor = 20 * time.Millisecond
)

// recording is the record of one start of an image: what was fetched, waited
// for and read, from the moment somebody asked for it until reading settles.
type recording struct {
	// Constant.
	lib      *Library
	manifest digest.Digest
	began    time.Time
	given    chan struct{} // closed when it came to nothing
	once     sync.Once     // guards given
	ended    chan struct{} // closed when nothing is recorded any more

	// mu guards what follows. Nothing else is locked under it.
	mu     sync.Mutex
	trace  trace.Start
	layers []*recordedLayer // bottom first; nil before they are known
	reads  []profile.Read
	latest time.Time // when something was read that had not been before
	plan   *profile.Profile
	over   bool
	// opened, where set, is told of files that may name others, when something of them
	// is read for the first time; not with mu held.
	opened func(file string)
}

// recordedLayer is a layer of a recording. recording.mu guards it.
type recordedLayer struct {
	ll     *lazyLayer
	layer  Layer
	index  estargz.Index
	seen   bits // what was read
	wanted bits // what the profile had fetched
}

// bits is a set of chunks.
type bits []uint64

func (b bits) has(i int) bool { return b[i/64]&(1<<(i%64)) != 0 }
func (b bits) add(i int)      { b[i/64] |= 1 << (i % 64) }

// watcher is a recording that wants to know of a layer's reads.
type watcher struct {
	rec   *recording
	layer int // index into its layers
}

// record begins to record a start. l.mu is held.
func (l *Library) record(repository, called string, manifest digest.Digest) *recording {
	if called == "" { // nobody has asked for it yet
		called = repository + "@" + manifest.String()
	}
	r := &recording{lib: l, manifest: manifest, began: time.Now(), given: make(chan struct{}), ended: make(chan struct{})}
	r.trace = trace.Start{Image: called, Manifest: manifest, Began: r.began}
	l.keepTrace(r)
	l.work.Go(r.run)
	return r
}

// name notes how the user calls the image.
func (r *recording) name(called string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.trace.Image = called
}

// keepTrace enters a recording under its manifest. l.mu is held.
func (l *Library) keepTrace(r *recording) {
	l.traces = slices.DeleteFunc(l.traces, func(old *recording) bool { return old.manifest == r.manifest })
	if len(l.traces) == maxTraces {
		l.traces = slices.Delete(l.traces, 0, 1)
	}
	l.traces = append(l.traces, r)
}

// Traces returns the timelines of the latest starts of images since the library
// was opened, the latest last; those that have not settled as far as they are.
// Of an image there is one.
func (l *Library) Traces() []trace.Start {
	l.mu.Lock()
	recordings := slices.Clone(l.traces)
	l.mu.Unlock()
	starts := make([]trace.Start, len(recordings))
	for i, r := range recordings {
		starts[i] = r.snapshot()
	}
	return starts
}

func (r *recording) snapshot() trace.Start {
	r.mu.Lock()
	defer r.mu.Unlock()
	t := r.trace
	t.Events = slices.Clone(t.Events)
	slices.SortStableFunc(t.Events, func(a, b trace.Event) int { return cmp.Compare(a.At, b.At) })
	return t
}

// run waits until the start has settled.
func (r *recording) run() {
	again := time.NewTicker(r.lib.cfg.StartSettle / 4)
	defer again.Stop()
	for {
		select {
		case <-r.given:
			r.finish(false)
			return
		case <-r.lib.ctx.Done():
			r.finish(true)
			return
		case now := <-again.C:
			if r.settled(now) {
				r.finish(true)
				return
			}
		}
	}
}

func (r *recording) settled(now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return now.Sub(r.began) > maxRecording || len(r.reads) > 0 && now.Sub(r.latest) > r.lib.cfg.StartSettle
}

// giveUp ends a recording of a start that failed.
func (r *recording) giveUp() { r.once.Do(func() { close(r.given) }) }

// event notes something that began at start and is over now.
func (r *recording) event(start time.Time, e trace.Event, err error) {
	e.At, e.Took = start.Sub(r.began), time.Since(start)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.note(e, err)
}

// note adds an event. r.mu is held.
func (r *recording) note(e trace.Event, err error) {
	if r.over {
		return
	}
	if len(r.trace.Events) >= maxTraceEvents {
		r.trace.Dropped++
		return
	}
	if err != nil {
		e.Error = err.Error()
	}
	r.trace.Events = append(r.trace.Events, e)
}

// watch begins to record what is read of the layers.
func (r *recording) watch(layers []Layer) {
	l := r.lib
	l.mu.Lock()
	defer l.mu.Unlock()
	all := make([]*recordedLayer, 0, len(layers))
	for _, layer := range layers {
		id := layerID(layer.Digest, layer.TOCDigest)
		ll, toc := l.layers[id], l.tocs[id]
		if ll == nil || toc == nil {
			return // It was dropped already: a profile without it would mislead.
		}
		n := (len(toc.Index.Chunks) + 63) / 64
		all = append(all, &recordedLayer{
			ll: ll, layer: layer, index: toc.Index, seen: make(bits, n), wanted: make(bits, n),
		})
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over {
		return
	}
	r.layers = all
	for i, rl := range all {
		rl.ll.watch(watcher{r, i})
	}
}

// watch adds a watcher. Library.mu is held.
func (ll *lazyLayer) watch(w watcher) {
	all := append([]watcher{w}, ll.watching()...)
	ll.watchers.Store(&all)
}

// unwatch takes a recording's watchers away. Library.mu is held.
func (ll *lazyLayer) unwatch(r *recording) {
	var left []watcher
	for _, w := range ll.watching() {
		if w.rec != r {
			left = append(left, w)
		}
	}
	ll.watchers.Store(&left)
}

func (ll *lazyLayer) watching() []watcher {
	if p := ll.watchers.Load(); p != nil {
		return *p
	}
	return nil
}

// read notes that a layer was read.
func (ll *lazyLayer) read(a layerdev.Access) {
	if a.Missed > 0 {
		ll.lib.lastMiss.Store(time.Now().UnixNano())
		ll.lib.log.Debug("a reader had to wait", "file", a.File, "chunk", a.First, "missed", a.Missed, "wait", a.Wait)
	}
	for _, w := range ll.watching() {
		w.rec.read(w.layer, a)
	}
}

// fetched notes that a range of a layer was fetched.
func (ll *lazyLayer) fetched(f layerdev.Fetched) {
	for _, w := range ll.watching() {
		w.rec.fetched(w.layer, f)
	}
}

// read notes a read of a layer.
func (r *recording) read(layer int, a layerdev.Access) {
	at := a.At
	if a.Missed == 0 {
		at = time.Now()
	}
	tell, files := r.noteRead(layer, a, at)
	for _, name := range files {
		tell("/" + name)
	}
}

// noteRead notes a read that began at that time, and returns who is to be told of
// which files.
func (r *recording) noteRead(layer int, a layerdev.Access, at time.Time) (tell func(string), files []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over {
		return nil, nil
	}
	rl := r.layers[layer]
	for i := a.First; i < a.Last; i++ {
		if rl.seen.has(i) {
			continue
		}
		if r.opened != nil {
			f, ok := rl.index.FileAt(rl.index.Chunks[i].DataOff)
			if ok && follows(f.Name) && (len(files) == 0 || files[len(files)-1] != f.Name) {
				files = append(files, f.Name)
			}
		}
		rl.seen.add(i)
		r.latest = time.Now()
		r.trace.Read += rl.index.Chunks[i].Size
		if rl.wanted.has(i) {
			r.trace.Used += rl.index.Chunks[i].Size
		}
		r.append(profile.Read{Layer: layer, First: i, Count: 1, At: at.Sub(r.began).Truncate(time.Millisecond), Starts: 1})
	}
	if a.Missed > 0 {
		r.note(trace.Event{
			Kind: trace.Fault, At: at.Sub(r.began), Took: a.Wait, Layer: rl.layer.Digest, File: "/" + a.File,
			Chunk: a.First, Chunks: a.Last - a.First, Bytes: a.Bytes,
			Local: a.From.Local, Peers: a.From.Peers, Origin: a.From.Origin,
		}, a.Err)
	}
	return r.opened, files
}

// follow has tell called with the files that are read for the first time and may name
// others, until nothing is recorded any more; nil ends it.
func (r *recording) follow(tell func(file string)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.opened = tell
}

// append adds a read. r.mu is held.
func (r *recording) append(read profile.Read) {
	if n := len(r.reads); n > 0 {
		last := &r.reads[n-1]
		if last.Layer == read.Layer && last.First+last.Count == read.First && max(read.At-last.At, last.At-read.At) < togetherFor {
			last.Count += read.Count
			return
		}
	}
	r.reads = append(r.reads, read)
}

// fetched notes a range of a layer that was fetched.
func (r *recording) fetched(layer int, f layerdev.Fetched) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over {
		return
	}
	if f.Priority == blob.Background {
		return // for later, not for the start
	}
	r.trace.Fetched += f.From.Peers + f.From.Origin
	r.trace.Inflated += f.Bytes
	if f.Priority == blob.Prefetch {
		r.note(trace.Event{
			Kind: trace.Prefetch, At: f.At.Sub(r.began), Took: f.Took, Layer: r.layers[layer].layer.Digest,
			Chunk: f.First, Chunks: f.Last - f.First, Bytes: f.Bytes,
			Local: f.From.Local, Peers: f.From.Peers, Origin: f.From.Origin,
		}, f.Err)
	}
}

// planned notes what a profile will have fetched.
func (r *recording) planned(p *profile.Profile, from string, wanted []profile.Read) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over || r.layers == nil {
		return
	}
	r.plan, r.trace.Profile = p, from
	for _, read := range wanted {
		rl := r.layers[read.Layer]
		for i := read.First; i < read.First+read.Count; i++ {
			if rl.wanted.has(i) {
				continue
			}
			rl.wanted.add(i)
			r.trace.Wanted += rl.index.Chunks[i].Size
			if rl.seen.has(i) {
				r.trace.Used += rl.index.Chunks[i].Size
			}
		}
	}
}

// finish ends the recording. What was read becomes a profile, if anything was.
func (r *recording) finish(good bool) {
	defer close(r.ended)
	l := r.lib
	l.mu.Lock()
	for _, rl := range r.recorded() {
		rl.ll.unwatch(r)
	}
	l.mu.Unlock()

	r.mu.Lock()
	r.over = true
	r.trace.Settled = time.Since(r.began)
	if !r.latest.IsZero() {
		r.trace.Settled = r.latest.Sub(r.began)
	}
	learned := r.learned()
	image, plan, wanted, used, read := r.trace.Image, r.plan, r.trace.Wanted, r.trace.Used, r.trace.Read
	// Nothing of the layers is needed any more.
	r.layers, r.reads = nil, nil
	r.mu.Unlock()
	if !good || learned == nil {
		return
	}
	l.log.Info("image has started", "image", image, "manifest", r.manifest, "settled", r.trace.Settled,
		"read", read, "profile", r.trace.Profile, "wanted", wanted, "used", used)
	l.learn(learned, plan, wanted, used, read)
	if l.cfg.OnStarted != nil {
		l.cfg.OnStarted(r.snapshot())
	}
}

func (r *recording) recorded() []*recordedLayer {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.layers
}

// learned returns the profile of what was read; nil if nothing was. r.mu is
// held.
func (r *recording) learned() *profile.Profile {
	if len(r.reads) == 0 {
		return nil
	}
	p := &profile.Profile{
		Manifest: r.manifest, Platform: r.lib.cfg.Platform.String(), Recorded: time.Now().Truncate(time.Second), Starts: 1, Reads: r.reads,
	}
	// They were noted when they were answered, and are timed by when they began.
	slices.SortStableFunc(p.Reads, func(a, b profile.Read) int { return cmp.Compare(a.At, b.At) })
	for _, rl := range r.layers {
		p.Layers = append(p.Layers, profile.Layer{Digest: rl.layer.Digest, TOC: rl.layer.TOCDigest, Chunks: len(rl.index.Chunks)})
	}
	return p
}

// mounting returns what notes, in the recordings of starts that read a layer,
// that it was mounted with others since now.
func (l *Library) mounting(layer Layer) (over func(error)) {
	start := time.Now()
	ll := l.layer(layerID(layer.Digest, layer.TOCDigest))
	return func(err error) {
		if ll == nil {
			return
		}
		for _, w := range ll.watching() {
			w.rec.event(start, trace.Event{Kind: trace.Mount}, err)
		}
	}
}

// timed returns ctx with a counter for what it will bring, and what notes an
// event of that kind once that is here.
func (r *recording) timed(ctx context.Context, kind trace.Kind, layer digest.Digest) (context.Context, func(bytes int64, err error)) {
	start, traffic := time.Now(), new(blob.Traffic)
	return blob.WithTraffic(ctx, traffic), func(bytes int64, err error) {
		r.event(start, trace.Event{
			Kind: kind, Layer: layer, Bytes: bytes,
			Local: traffic.Local.Load(), Peers: traffic.Peers.Load(), Origin: traffic.Origin.Load(),
		}, err)
	}
}
