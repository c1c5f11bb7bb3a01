package layerdev

// Progress returns how many bytes of file content are present, and how many
// there are; padding between files is in neither.
//
// Errors: those of reading the layer's folder.
func (l *Layer) Progress() (present, total int64, err error) {
	if l.IsComplete() && l.contents.Load() == nil {
		return l.size, l.size, nil
	}
	c, err := l.load()
	if err != nil {
		return 0, 0, err
	}
	for i := range c.ix.Chunks {
		n := c.ix.Chunks[i].Size
		total += n
		if c.present.all(i, i+1) {
			present += n
		}
	}
	return present, total, nil
}

// Add returns the counters of s and t together.
func (s Stats) Add(t Stats) Stats {
	return Stats{
		Runs: s.Runs + t.Runs, Fetched: s.Fetched + t.Fetched, Streams: s.Streams + t.Streams,
		Chunks: s.Chunks + t.Chunks, Inflated: s.Inflated + t.Inflated, Read: s.Read + t.Read, Used: s.Used + t.Used,
		Faults: s.Faults + t.Faults, Waits: s.Waits + t.Waits, Errors: s.Errors + t.Errors,
		Timeouts: s.Timeouts + t.Timeouts, Corrupt: s.Corrupt + t.Corrupt, Loose: s.Loose + t.Loose,
		Outages: s.Outages + t.Outages, Retries: s.Retries + t.Retries,
		Waited: s.Waited + t.Waited, Longest: max(s.Longest, t.Longest),
	}
}
