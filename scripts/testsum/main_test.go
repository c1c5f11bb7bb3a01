package main

import (
	"strings"
	"testing"
)

func TestSummarise(t *testing.T) {
	for _, c := range []struct {
		name, events, want string
		ok                 bool
	}{
		{
			name: "passed",
			events: `{"Action":"output","Package":"p","Test":"TestA","Output":"noise\n"}
{"Action":"pass","Package":"p","Test":"TestA"}
{"Action":"skip","Package":"q"}
{"Action":"pass","Package":"p","Elapsed":1.25}`,
			want: "ok   p (1.2s)\n1 passed, 0 failed, 0 skipped\n",
			ok:   true,
		},
		{
			name: "a failed test counts once, with its output",
			events: `{"Action":"output","Package":"p","Test":"TestA","Output":"got 1\n"}
{"Action":"pass","Package":"p","Test":"TestB"}
{"Action":"fail","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Output":"FAIL\n"}
{"Action":"fail","Package":"p"}`,
			want: "got 1\nFAIL p TestA (0.0s)\nFAIL\nFAIL p (0.0s)\n1 passed, 1 failed, 0 skipped\n",
		},
		{
			name: "a package that does not build",
			events: `{"Action":"build-output","ImportPath":"p [p.test]","Output":"x.go:1: syntax error\n"}
{"Action":"build-fail","ImportPath":"p [p.test]"}
{"Action":"pass","Package":"q","Test":"TestB"}
{"Action":"fail","Package":"p","FailedBuild":"p [p.test]"}`,
			want: "x.go:1: syntax error\nFAIL p (0.0s)\n1 passed, 1 failed, 0 skipped\n",
		},
		{
			name: "skips are loud",
			events: `{"Action":"output","Package":"p","Test":"TestA","Output":"=== RUN   TestA\n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"    a_test.go:3: needs root\n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"--- SKIP: TestA (0.00s)\n"}
{"Action":"skip","Package":"p","Test":"TestA"}
{"Action":"pass","Package":"p","Test":"TestB"}`,
			want: "SKIP p TestA: a_test.go:3: needs root\n1 passed, 0 failed, 1 skipped\n",
			ok:   true,
		},
		{name: "nothing ran", events: "go: cannot find main module", want: "go: cannot find main module\n0 passed, 0 failed, 0 skipped\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out strings.Builder
			ok, err := summarise(strings.NewReader(c.events), &out)
			if err != nil {
				t.Fatal(err)
			}
			if ok != c.ok || out.String() != c.want {
				t.Errorf("ok %v, want %v\ngot:\n%s\nwant:\n%s", ok, c.ok, out.String(), c.want)
			}
		})
	}
}
