package config

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// docs is the folder Files belong in.
const docs = "../../docs"

func TestDocsAreCurrent(t *testing.T) {
	files, err := Files()
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range files {
		got, err := os.ReadFile(filepath.Join(docs, name))
		if err != nil {
			t.Errorf("%v: run make docs", err)
		} else if d := cmp.Diff(want, string(got)); d != "" {
			t.Errorf("docs/%s is not what the structs say (-structs +file): run make docs\n%s", name, d)
		}
	}
}

func TestSampleIsTheDefaults(t *testing.T) {
	var got Peer
	if err := Load(filepath.Join(docs, "config/peer.yaml"), &got); err != nil {
		t.Fatal(err)
	}
	if want := DefaultPeer(); !reflect.DeepEqual(got, want) {
		t.Errorf("sample file gives\n%+v\nwant the defaults\n%+v", got, want)
	}
	var scheduler Scheduler
	if err := Load(filepath.Join(docs, "config/scheduler.yaml"), &scheduler); err != nil {
		t.Fatal(err)
	}
	if want := DefaultScheduler(); !reflect.DeepEqual(scheduler, want) {
		t.Errorf("sample file of a scheduler gives\n%+v\nwant the defaults\n%+v", scheduler, want)
	}
}

// Every key can be written in a file, read, and looked up in the docs.
func TestKeysAreComplete(t *testing.T) {
	comments, err := readComments()
	if err != nil {
		t.Fatal(err)
	}
	peer, scheduler := DefaultPeer(), DefaultScheduler()
	var walk func(keys []keyDoc)
	walk = func(keys []keyDoc) {
		for _, k := range keys {
			if k.name == "" {
				t.Errorf("a field below %q has no yaml tag", k.path)
			}
			if k.comment == "" && k.sectionAbout == "" {
				t.Errorf("%s has no comment", k.path)
			}
			walk(k.section)
		}
	}
	walk(keysOf(reflect.ValueOf(&peer).Elem(), "", comments))
	walk(keysOf(reflect.ValueOf(&scheduler).Elem(), "", comments))
}
