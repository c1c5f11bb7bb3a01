package layerdev

import "skimmer/internal/estargz"

// UsedFiles returns the files of which readers wanted something since the Layer
// was opened, in the order of the data; nil where nobody did.
func (l *Layer) UsedFiles() []estargz.File {
	c := l.contents.Load()
	if c == nil {
		return nil
	}
	var files []estargz.File
	for _, f := range c.ix.Files {
		first, last := c.chunks(f.DataOff, f.DataOff+f.Size)
		if c.used.any(first, last) {
			files = append(files, f)
		}
	}
	return files
}
