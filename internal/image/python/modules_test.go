package python

import (
	"slices"
	"strings"
	"testing"
)

// debian is a tree as Debian has it, with a virtual environment and a program.
var debian = strings.Fields(`
	/usr/bin/python3.11
	/usr/lib/python3.11/encodings/__init__.py /usr/lib/python3.11/encodings/__pycache__/__init__.cpython-311.pyc
	/usr/lib/python3.11/encodings/aliases.py /usr/lib/python3.11/encodings/__pycache__/aliases.cpython-311.pyc
	/usr/lib/python3.11/encodings/utf_8.py /usr/lib/python3.11/encodings/__pycache__/utf_8.cpython-311.pyc
	/usr/lib/python3.11/os.py /usr/lib/python3.11/__pycache__/os.cpython-311.pyc
	/usr/lib/python3.11/json/__init__.py /usr/lib/python3.11/json/decoder.py
	/usr/lib/python3.11/__pycache__/heapq.cpython-311.opt-1.pyc /usr/lib/python3.11/heapq.py
	/usr/lib/python3.11/lib-dynload/_json.cpython-311-x86_64-linux-gnu.so
	/usr/lib/python3.11/lib-dynload/_old.cpython-310-x86_64-linux-gnu.so
	/usr/lib/python3/dist-packages/numpy/__init__.py /usr/lib/python3/dist-packages/numpy/__pycache__/__init__.cpython-311.pyc
	/usr/lib/python3/dist-packages/numpy/core/__init__.py /usr/lib/python3/dist-packages/numpy/core/fast.abi3.so
	/usr/lib/python3/dist-packages/numpy/core/fast.py
	/usr/lib/python3/dist-packages/google/protobuf/__init__.py
	/usr/lib/python3/dist-packages/space-nspkg.pth /srv/other.pth
	/usr/lib/python3/dist-packages/json.py
	/opt/venv/lib/python3.11/site-packages/flask/__init__.py /opt/venv/bin/flask
	/app/main.py /app/helper.py /app/parts/__init__.py /app/parts/one.py /app/parts/__main__.py
`)

func modulesOf(version string, files []string) *Modules {
	return NewModules(version, func(yield func(string) bool) { slices.Values(files)(yield) })
}

func TestModules(t *testing.T) {
	const stdlib, dist = "/usr/lib/python3.11", "/usr/lib/python3/dist-packages"
	m := modulesOf("3.11", debian)
	want := []string{
		stdlib + "/encodings/__pycache__/__init__.cpython-311.pyc",
		stdlib + "/encodings/__pycache__/__init__.cpython-311.pyc", stdlib + "/encodings/__pycache__/aliases.cpython-311.pyc",
		stdlib + "/encodings/__pycache__/__init__.cpython-311.pyc", stdlib + "/encodings/__pycache__/utf_8.cpython-311.pyc",
		dist + "/space-nspkg.pth",
	}
	if got := m.Interpreter("/usr/bin/python3.11"); !slices.Equal(got, want) {
		t.Errorf("the interpreter reads %q, want %q", got, want)
	}
	for name, want := range map[string][]string{
		"json":                  {stdlib + "/json/__init__.py"}, // before the one of the distribution
		"json.decoder":          {stdlib + "/json/__init__.py", stdlib + "/json/decoder.py"},
		"_json":                 {stdlib + "/lib-dynload/_json.cpython-311-x86_64-linux-gnu.so"},
		"_old":                  nil, // of another version
		"heapq":                 {stdlib + "/heapq.py"},
		"os":                    nil, // in the interpreter
		"numpy.core.fast":       {dist + "/numpy/__pycache__/__init__.cpython-311.pyc", dist + "/numpy/core/__init__.py", dist + "/numpy/core/fast.abi3.so"},
		"google.protobuf":       {dist + "/google/protobuf/__init__.py"}, // in a folder that is a package without a file
		"numpy.core.fast.thing": {dist + "/numpy/__pycache__/__init__.cpython-311.pyc", dist + "/numpy/core/__init__.py", dist + "/numpy/core/fast.abi3.so"},
		"nothing":               nil, "": nil, ".": nil, "helper": nil,
	} {
		if got := m.Named(name); !slices.Equal(got, want) {
			t.Errorf("%q is %q, want %q", name, got, want)
		}
	}

	m.Environment("/usr/bin/python3")
	if got := m.Named("flask"); got != nil {
		t.Errorf("flask is %q outside of its environment", got)
	}
	m.Environment("/opt/venv/bin/flask")
	if got, want := m.Named("flask"), []string{"/opt/venv/lib/python3.11/site-packages/flask/__init__.py"}; !slices.Equal(got, want) {
		t.Errorf("flask is %q in its environment, want %q", got, want)
	}

	// A program finds what lies beside it, and a package what is in it.
	for _, c := range []struct {
		file, text string
		want       []string
	}{
		{"/app/main.py", "import helper, parts.one, json", []string{"/app/helper.py", "/app/parts/__init__.py", "/app/parts/one.py", stdlib + "/json/__init__.py"}},
		{"/app/main.py", "from parts import one, two", []string{"/app/parts/__init__.py", "/app/parts/one.py"}},
		{"/app/parts/one.py", "from . import one\nfrom .. import helper", []string{"/app/parts/one.py"}}, // beyond the top
		{dist + "/numpy/core/fast.py", "from ..core import fast", []string{dist + "/numpy/core/__init__.py", dist + "/numpy/core/fast.abi3.so"}},
		{"/app/main.py", "", nil},
	} {
		got, err := m.Loads(c.file, []byte(c.text))
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%s with %q reads %q (%v), want %q", c.file, c.text, got, err, c.want)
		}
	}
	if got, want := m.Main("parts"), []string{"/app/parts/__init__.py", "/app/parts/__init__.py", "/app/parts/__main__.py"}; !slices.Equal(got, want) {
		t.Errorf("-m parts reads %q, want %q", got, want)
	}
	if got, want := m.Command("import heapq, numpy"), []string{stdlib + "/heapq.py", dist + "/numpy/__pycache__/__init__.cpython-311.pyc"}; !slices.Equal(got, want) {
		t.Errorf("the command reads %q, want %q", got, want)
	}
	if _, err := m.Loads(stdlib+"/__pycache__/os.cpython-311.pyc", []byte("nonsense")); err == nil {
		t.Error("a damaged module is no error")
	}
}

// The search path is learned from what is read, where no interpreter is known.
func TestModulesLearn(t *testing.T) {
	m := modulesOf("3.11", debian)
	if got := m.Named("numpy"); got != nil {
		t.Fatalf("numpy is %q before anything is known", got)
	}
	if _, err := m.Loads("/usr/lib/python3.11/json/decoder.py", nil); err != nil {
		t.Fatal(err)
	}
	if got := m.Named("numpy"); len(got) != 1 {
		t.Errorf("numpy is %q", got)
	}
	if m.Named("os") != nil {
		t.Error("os is not in the interpreter")
	}
	old := modulesOf("3.10", []string{"/usr/lib/python3.10/os.py", "/usr/lib/python3.10/encodings/__init__.py"})
	if got := old.Interpreter("/usr/bin/python3.10"); !slices.Contains(got, "/usr/lib/python3.10/os.py") {
		t.Errorf("an interpreter of 3.10 reads %q, not os.py", got)
	}
}

func TestVersions(t *testing.T) {
	for file, want := range map[string]string{"/usr/bin/python3.11": "3.11", "/usr/bin/python3": "", "/usr/bin/python3.11-config": "", "python3.9": "3.9"} {
		if got := Version(file); got != want {
			t.Errorf("%s is of version %q, want %q", file, got, want)
		}
	}
	for file, want := range map[string]string{
		"/a/__pycache__/b.cpython-39.pyc": "3.9", "/a/__pycache__/b.cpython-312.pyc": "3.12", "/usr/local/lib/python3.13/os.py": "3.13",
		"/a/b.py": "", "/usr/lib/python3/dist-packages/a.py": "",
	} {
		if got := VersionOf(file); got != want {
			t.Errorf("%s is for version %q, want %q", file, got, want)
		}
	}
}

func TestProgram(t *testing.T) {
	for line, want := range map[string]Program{
		"python3":                       {},
		"python3 main.py -c x":          {ScriptFile, "main.py"},
		"python3 -u -W ignore main.py":  {ScriptFile, "main.py"},
		"python3 -Werror -X dev -c a b": {CommandText, "a"},
		"python3 -ca":                   {CommandText, "a"},
		"python3 -Im a.b c":             {ModuleName, "a.b"},
		"python3 -m":                    {},
		"python3 --version":             {Nothing, ""},
		"python3 -V":                    {Nothing, ""},
		"python3 -h":                    {Nothing, ""},
		"python3 --help-all main.py":    {Nothing, ""},
		"python3 -":                     {},
		"python3 --check-hash-based-pycs always main.py": {ScriptFile, "main.py"},
	} {
		if got := ProgramOf(strings.Fields(line)); got != want {
			t.Errorf("%s runs %+v, want %+v", line, got, want)
		}
	}
}
