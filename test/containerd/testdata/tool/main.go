// Command tool is all that the test images have to run: a few ways to read and
// write files that say exactly what came of it.
package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// dontNeed is POSIX_FADV_DONTNEED of fadvise64(2).
const dontNeed = 4

func main() {
	if len(os.Args) < 2 {
		fatal(errors.New("usage: tool pause|cat|sha|at|try|reread|write|remove ..."))
	}
	if err := run(os.Args[1], os.Args[2:]); err != nil {
		fatal(err)
	}
}

func run(name string, args []string) error {
	switch name {
	case "pause": // until it is told to end
		signals := make(chan os.Signal, 1)
		signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
		fmt.Println("ready")
		<-signals
		return nil
	case "cat":
		p, err := os.ReadFile(args[0])
		fmt.Print(string(p))
		return err
	case "sha":
		for _, path := range args {
			sum, err := sha(path, false)
			if err != nil {
				return err
			}
			fmt.Println(sum, path)
		}
		return nil
	case "at":
		return at(args[0], args[1], args[2])
	case "try":
		return try(args[0])
	case "reread":
		return reread(args[0], args[1])
	case "write":
		return os.WriteFile(args[0], []byte(args[1]), 0o644)
	case "fill":
		n, err := strconv.Atoi(args[1])
		if err != nil {
			return err
		}
		return os.WriteFile(args[0], []byte(strings.Repeat("skimmer\n", n/8)), 0o644)
	case "remove":
		return os.Remove(args[0])
	}
	return fmt.Errorf("no command %q", name)
}

// sha reads a file to its end; from the disk or whoever plays it if cold.
func sha(path string, cold bool) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if cold {
		if _, _, errno := syscall.Syscall6(syscall.SYS_FADVISE64, f.Fd(), 0, 0, dontNeed, 0, 0); errno != 0 {
			return "", errno
		}
	}
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// at prints the digest of a range of a file.
func at(offset, length, path string) error {
	off, err1 := strconv.ParseInt(offset, 10, 64)
	n, err2 := strconv.ParseInt(length, 10, 64)
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	if got, err := io.Copy(h, io.NewSectionReader(f, off, n)); err != nil || got != n {
		return fmt.Errorf("read %d bytes: %w", got, err)
	}
	fmt.Println(hex.EncodeToString(h.Sum(nil)))
	return nil
}

// try prints how reading a file ended, and after how many milliseconds.
func try(path string) error {
	start := time.Now()
	_, err := sha(path, true)
	var errno syscall.Errno
	switch {
	case err == nil:
		fmt.Print("ok")
	case errors.As(err, &errno) && errno == syscall.EIO:
		fmt.Print("EIO")
	default:
		fmt.Print(strings.ReplaceAll(err.Error(), " ", "_"))
	}
	fmt.Println("", time.Since(start).Milliseconds())
	return nil
}

// reread reads a file times over, never from the page cache, and says when it
// has begun.
func reread(times, path string) error {
	n, err := strconv.Atoi(times)
	if err != nil {
		return err
	}
	var first string
	for i := range n {
		sum, err := sha(path, true)
		if err != nil {
			return fmt.Errorf("the %d. time: %w", i+1, err)
		}
		if first == "" {
			first = sum
			fmt.Println("reading")
		}
		if sum != first {
			return fmt.Errorf("the %d. time: other content", i+1)
		}
	}
	fmt.Println(first)
	return nil
}

func fatal(err error) {
	fmt.Println("tool:", err)
	os.Exit(1)
}
