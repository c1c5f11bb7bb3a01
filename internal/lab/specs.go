package lab

import "slices"

// base are the packages of a small but complete Debian system.
var base = []string{
	"base-files", "base-passwd", "bash", "bsdutils", "ca-certificates", "coreutils", "dash", "debianutils",
	"diffutils", "dpkg", "findutils", "grep", "gzip", "hostname", "iputils-ping", "less", "libc-bin", "login",
	"mount", "ncurses-base", "ncurses-bin", "netbase", "passwd", "perl-base", "sed", "tar", "tzdata", "util-linux",
}

// Specs returns the images that can be built without writing a [Spec], the
// demonstration's default first.
func Specs() []Spec {
	return []Spec{
		debian("python", "Python 3 with NumPy, a C toolchain and git").
			with([]string{"build-essential", "git"}, []string{"python3-full", "python3-dev", "python3-numpy"}).
			link("usr/bin/cc", "gcc", "usr/bin/c++", "g++",
				"usr/lib/$multiarch/libblas.so.3", "blas/libblas.so.3",
				"usr/lib/$multiarch/liblapack.so.3", "lapack/liblapack.so.3").
			program("version", "/usr/bin/python3", "--version").
			program("import", "/usr/bin/python3", "-c", "import asyncio, json, sqlite3, ssl, numpy; print(numpy.arange(10).sum())"),
		debian("node", "Node.js").
			with([]string{"nodejs"}).
			program("version", "/usr/bin/node", "--version").
			program("import", "/usr/bin/node", "-e", `require("http"); require("crypto"); require("zlib"); console.log(process.versions.v8)`),
		debian("jdk", "OpenJDK 17 without its graphical parts").
			with([]string{"openjdk-17-jdk-headless"}).
			link("usr/bin/java", "../lib/jvm/java-17-openjdk-$arch/bin/java").
			program("version", "/usr/bin/java", "-version").
			program("import", "/usr/bin/java", "--list-modules"),
		debian("webpack", "Node.js with a web framework and a bundler: a program of hundreds of modules").
			with([]string{"nodejs"}, []string{"node-express", "webpack"}).
			program("import", "/usr/bin/node", "-e", `require("express"); require("webpack"); console.log(process.versions.v8)`),
		debian("ruby", "Ruby").
			with([]string{"ruby"}).
			program("version", "/usr/bin/ruby", "--version").
			program("import", "/usr/bin/ruby", "-e", `require "json"; require "set"; require "openssl"; puts OpenSSL::VERSION`),
		debian("perl", "Perl").
			with([]string{"perl"}).
			program("version", "/usr/bin/perl", "--version").
			program("import", "/usr/bin/perl", "-e", `use POSIX; use Encode; use Storable; use IO::Socket; print "$POSIX::VERSION\n"`),
		debian("science", "Python with SciPy, pandas, scikit-learn and PyTorch beside a C++ and a Haskell compiler: 3 GB unpacked, takes minutes to build").
			with([]string{"python3-full", "python3-scipy", "python3-pandas", "python3-matplotlib", "python3-sklearn"},
				[]string{"python3-torch"}, []string{"clang-14", "llvm-14-dev", "libclang-14-dev"}, []string{"ghc"}).
			link("usr/lib/$multiarch/libblas.so.3", "blas/libblas.so.3",
				"usr/lib/$multiarch/liblapack.so.3", "lapack/liblapack.so.3").
			program("import", "/usr/bin/python3", "-c", "import numpy, scipy.linalg, pandas, sklearn.linear_model; print(pandas.Series(numpy.arange(10)).sum())"),
		{
			Name: "busybox", About: "a statically linked shell and its tools: small, for tests",
			Layers:    [][]string{{"base-files", "base-passwd"}, {"busybox-static"}},
			Links:     map[string]string{"usr/bin/sh": "busybox"},
			Whiteouts: []string{"usr/share/base-files/motd"},
			Opaque:    []string{"usr/share/doc"},
			Programs:  []Program{{"version", []string{"/usr/bin/busybox", "uname", "-s"}}},
		},
	}
}

// SpecNamed returns the spec called name and whether there is one.
func SpecNamed(name string) (Spec, bool) {
	specs := Specs()
	i := slices.IndexFunc(specs, func(s Spec) bool { return s.Name == name })
	if i < 0 {
		return Spec{}, false
	}
	return specs[i], true
}

func debian(name, about string) Spec {
	return Spec{
		Name: name, About: about,
		Layers:    [][]string{base},
		Links:     map[string]string{"usr/bin/awk": "mawk"},
		Whiteouts: []string{"usr/share/lintian", "etc/issue.net"},
		Opaque:    []string{"usr/share/doc"},
		Env:       []string{"LANG=C.UTF-8"},
	}
}

func (s Spec) with(layers ...[]string) Spec {
	s.Layers = append(s.Layers, layers...)
	return s
}

// link adds symlinks, given as path, target, path, target, ...
func (s Spec) link(pairs ...string) Spec {
	for p := range slices.Chunk(pairs, 2) {
		s.Links[p[0]] = p[1]
	}
	return s
}

func (s Spec) program(name string, args ...string) Spec {
	s.Programs = append(s.Programs, Program{name, args})
	return s
}
