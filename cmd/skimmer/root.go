package main

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/spf13/cobra"
)

// app is what every subcommand shares: the streams and the global flags. A
// test builds one with buffers in place of the terminal.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer

	output  string // --output: "table" or "json"
	verbose bool   // --verbose: log at debug level
}

func newApp() *app {
	return &app{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr}
}

// logger returns a logger for commands that run in the foreground; daemons
// configure their own.
func (a *app) logger() *slog.Logger {
	level := slog.LevelWarn
	if a.verbose {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: level}))
}

// print writes v as indented JSON when --output json was given, and calls
// table otherwise.
func (a *app) print(v any, table func(w io.Writer) error) error {
	if a.output != "json" {
		return table(a.stdout)
	}
	enc := json.NewEncoder(a.stdout)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

func newRootCommand(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:   "skimmer",
		Short: "Start containers before their images have arrived",
		Long: `Skimmer mounts container images at once and fetches a file's bytes when it is
read, from a neighbour if one has them and from the registry if not.

To try it on this machine, as root:

  skimmer demo`,
		SilenceUsage:  true,
		SilenceErrors: true,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if a.output != "table" && a.output != "json" {
				return fmt.Errorf("read flags: --output %q: must be table or json", a.output)
			}
			return nil
		},
	}
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	f := root.PersistentFlags()
	f.StringVarP(&a.output, "output", "o", "table", "how to print results: table or json")
	f.BoolVarP(&a.verbose, "verbose", "v", false, "log what is being done")
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json"}, cobra.ShellCompDirectiveNoFileComp))

	root.AddCommand(
		newBenchCommand(a),
		newBlobCommand(a),
		newDocsCommand(a),
		newDemoCommand(a),
		newDoctorCommand(a),
		newGetCommand(a),
		newHoldCommand(a),
		newUnpackCommand(a),
		newImageCommand(a),
		newInstallCommand(a),
		newMountCommand(a),
		newPeerCommand(a),
		newPeersCommand(a),
		newProfileCommand(a),
		newSchedulerCommand(a),
		newStatusCommand(a),
		newUmountCommand(a),
		newUninstallCommand(a),
		newUpCommand(a),
		newVersionCommand(a),
	)
	addBuiltins(root)
	return root
}
