package coldstart

import (
	"slices"

	"skimmer/internal/lab"
)

// imports is a program that imports the first 300 modules of the standard
// library that this Python has, in a fixed order, without those that open
// windows, start programs or print. The image has them compiled, so starting it
// is bringing files, not compiling them.
const imports = `
import importlib, pkgutil, sys
skip = {"antigravity", "this", "idlelib", "tkinter", "turtle", "turtledemo", "test", "lib2to3", "ensurepip", "venv"}
queue = [m for m in sorted(sys.stdlib_module_names) if m[0] != "_" and m not in skip]
done = 0
while queue and done < 300:
    name = queue.pop(0)
    if name.rpartition(".")[2] in ("__main__", "tests", "test"):
        continue
    try:
        module = importlib.import_module(name)
    except Exception:
        continue
    done += 1
    if hasattr(module, "__path__"):
        queue += sorted(name + "." + m.name for m in pkgutil.iter_modules(module.__path__))
print(done, "modules")
sys.exit(done != 300)
`

// whole is a program that reads all of an image and says how much that was, without the
// files in which eStargz keeps what it says of a layer: a lazy mount has none of them,
// and who unpacks the layer has those of the last one.
const whole = "tar -C / --one-file-system --exclude=./stargz.index.json --exclude=./.no.prefetch.landmark --exclude=./.prefetch.landmark -cf - . 2>/dev/null | wc -c"

// testCase is a program in an image.
type testCase struct {
	name  string
	image lab.Spec
	args  []string
	only  []Mode // the modes it is measured in; nil is all
}

func (c Config) cases() (cases []testCase) {
	for i, s := range c.Images {
		cases = append(cases, testCase{s.Name, s, s.Programs[0].Args, nil})
		if c.Imports && s.Name == "python" {
			cases = append(cases, testCase{"python, 300 imports", s, []string{"/usr/bin/python3", "-W", "ignore", "-c", imports}, nil})
		}
		if c.Whole && i == 0 {
			cases = append(cases, testCase{s.Name + ", read through", s, []string{"/bin/sh", "-c", whole}, []Mode{Overlayfs, Skimmer}})
		}
	}
	return cases
}

// modes returns those of all that the case is measured in.
func (c testCase) modes(all []Mode) []Mode {
	if c.only == nil {
		return all
	}
	return slices.DeleteFunc(slices.Clone(all), func(m Mode) bool { return !slices.Contains(c.only, m) })
}
