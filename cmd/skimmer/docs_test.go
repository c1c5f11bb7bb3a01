package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
)

// everyCommand calls do for all commands, hidden and built-in ones included.
func everyCommand(do func(cmd *cobra.Command)) {
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		do(cmd)
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
	}
	walk(newRootCommand(newApp()))
}

func TestHelpIsComplete(t *testing.T) {
	everyCommand(func(cmd *cobra.Command) {
		path := cmd.CommandPath()
		if cmd.Short == "" || strings.HasSuffix(cmd.Short, ".") || strings.ToUpper(cmd.Short[:1]) != cmd.Short[:1] {
			t.Errorf("%s: Short is %q: say in one line what it does, capitalised, without a full stop", path, cmd.Short)
		}
		if !cmd.HasParent() {
			return
		}
		switch {
		case cmd.Example == "":
			t.Errorf("%s: no Example: add one that works as it stands", path)
		case !strings.Contains(cmd.Example, "skimmer "):
			t.Errorf("%s: Example does not run skimmer: %q", path, cmd.Example)
		}
		for line := range strings.Lines(cmd.Example) {
			if strings.TrimSpace(line) != "" && !strings.HasPrefix(line, "  ") {
				t.Errorf("%s: Example line %q is not indented by two blanks, as cobra shows it", path, line)
			}
		}
		if cmd.Args == nil && cmd.Runnable() && cmd.Name() != "help" {
			t.Errorf("%s: no Args: say how many it takes, so that more are refused", path)
		}
	})
}

func TestDocsAreCurrent(t *testing.T) {
	files, err := docFiles(newRootCommand(newApp()))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range files {
		got, err := os.ReadFile(filepath.Join("../../docs", name))
		if err != nil {
			t.Errorf("%v: run make docs", err)
		} else if d := cmp.Diff(want, string(got)); d != "" {
			t.Errorf("docs/%s is not current (-code +file): run make docs\n%s", name, d)
		}
	}
}

func TestDocsCommand(t *testing.T) {
	dir := t.TempDir()
	var out bytes.Buffer
	a := newApp()
	a.stdout = &out
	root := newRootCommand(a)
	root.SetArgs([]string{"docs", dir})
	if err := root.ExecuteContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	files, err := docFiles(newRootCommand(newApp()))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range files {
		path := filepath.Join(dir, name)
		if got, err := os.ReadFile(path); err != nil || string(got) != want {
			t.Errorf("%s: %v, or it differs from what is generated", name, err)
		}
		if !strings.Contains(out.String(), path+"\n") {
			t.Errorf("%s was written and not named", path)
		}
	}
}

func TestProse(t *testing.T) {
	got := prose("Words.\n\n  code one\n\n  code two\nMore words.\n\n\tlast code\n")
	want := "Words.\n\n```\n  code one\n\n  code two\n```\nMore words.\n\n```\n\tlast code\n```"
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// Completion works from the shell's side: the hidden command every generated
// script calls.
func TestCompletion(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"__complete", "vers"}, "version\t"},
		{[]string{"__complete", "version", "--output", ""}, "json\n"},
		{[]string{"completion", "bash"}, "bash completion V2 for skimmer"},
	} {
		var out bytes.Buffer
		a := newApp()
		a.stdout, a.stderr = &out, &out
		root := newRootCommand(a)
		root.SetArgs(c.args)
		if err := root.ExecuteContext(t.Context()); err != nil || !strings.Contains(out.String(), c.want) {
			t.Errorf("skimmer %s: %v, output lacks %q:\n%.300s", strings.Join(c.args, " "), err, c.want, out.String())
		}
	}
}
