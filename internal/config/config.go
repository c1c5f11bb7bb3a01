// Package config turns a role's YAML file into a struct that is complete and
// right, or into errors a person can act on: it is where every key has its
// default, its meaning and its limits, and where mistakes in a file are found
// before anything runs.
//
// The documentation of the keys and the annotated sample files are made from
// the same structs ([Markdown], [Sample]), so they cannot differ from what is
// read. Nothing else of ours imports this package but the commands, which
// turn these structs into each part's own Config.
package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
)

// Dir is where the configuration file of each role is looked for.
const Dir = "/etc/skimmer"

// maxFile limits the size of a configuration file, in bytes.
const maxFile = 1 << 20

// Problem is one thing that is wrong with a configuration, in one line.
type Problem struct {
	// File, Line and Column say where; Line and Column count from 1 and are 0
	// for what is wrong with a key the file does not have.
	File         string
	Line, Column int
	// Key is the key's path, such as storage.highWater; empty for what is
	// wrong with the file as a whole.
	Key string
	// Err says what is wrong, and what would be right.
	Err error
}

func (p *Problem) Error() string {
	s := p.File
	if p.Line > 0 {
		s += fmt.Sprintf(":%d:%d", p.Line, p.Column)
	}
	if s != "" {
		s += ": "
	}
	if p.Key != "" {
		s += p.Key + ": "
	}
	return s + p.Err.Error()
}

func (p *Problem) Unwrap() error { return p.Err }

// Invalid returns what a Validate method reports about one of its struct's
// own keys, named as the file names it. Several go through errors.Join.
func Invalid(key, format string, args ...any) error {
	return &Problem{Key: key, Err: fmt.Errorf(format, args...)}
}

// Validator is a configuration struct that can hold values which are wrong
// only together, or out of bounds. Load asks every struct, outermost last.
type Validator interface {
	// Validate returns nil, or what Invalid made of each fault.
	Validate() error
}

// Find returns the file to load for a role: the one the user named, which
// then has to exist, or Dir/<role>.yaml where there is one. It returns "",
// which Load takes as a file without keys, if there is none.
func Find(named, role string) string {
	if named != "" {
		return named
	}
	path := filepath.Join(Dir, role+".yaml")
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return ""
	}
	return path
}

// Load reads the YAML file at path over the defaults that are in *into, and
// validates the result. Keys that are not there, or have nothing behind the
// colon, keep their default; lists and maps replace theirs. An empty path is a file
// without keys.
//
// Everything that is wrong is reported, each as a *Problem with its place:
// unknown and doubled keys, values of the wrong type, values out of bounds.
// After an error *into is of no use.
func Load[T any](path string, into *T) error {
	var text []byte
	if path != "" {
		var err error
		if text, err = read(path); err != nil {
			return fmt.Errorf("read configuration: %w", err)
		}
	}
	return Parse(path, text, into)
}

func read(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(text) > maxFile {
		err = &Problem{File: path, Err: fmt.Errorf("file is larger than %v", Bytes(maxFile))}
	}
	return text, err
}

// Parse is Load for text that is at hand; name stands for its file in errors.
// T must be a struct made of structs, strings, booleans, integers, types that
// unmarshal themselves from text, and lists and string-keyed maps of these.
// Structs inside maps are not asked to validate themselves.
func Parse[T any](name string, text []byte, into *T) error {
	d := &decoder{file: name, places: make(map[string]place)}
	v := reflect.ValueOf(into).Elem()
	d.document(text, v)
	if len(d.problems) == 0 {
		d.validate(v, "")
	}
	if len(d.problems) == 0 {
		return nil
	}
	return fmt.Errorf("read configuration: %w", errors.Join(d.problems...))
}
