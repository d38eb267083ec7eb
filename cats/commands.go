package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/prometheus/common/version"
	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"

	"cats.example/cats/client"
)

const help = `cats stores, downloads, links and deletes the pictures of users at a cats-api.

If the service requires authentication, put the token into the variable CATS_TOKEN or
into the file that --token-file names. No flag takes the token itself, because other
users of the machine can see the arguments of a process. The token is sent over HTTPS.
It is sent over plain HTTP only to this machine, or with --insecure.

Exit codes:
  0  success
  1  any other error
  2  wrong usage
  3  the user has no picture
  4  the service rejects the request or the picture (400, 413, 414, 415, 422)
  5  not authenticated or not permitted (401, 403)
  6  a precondition failed or another upload won (409, 412); get: the file exists
  7  try again later (408, 429, 503, a 5xx of storage or of a proxy, no connection)
Ctrl-C and SIGTERM end the process by that signal, which a shell shows as 130 and 143.

A failed put or rm has changed nothing, unless the message says that the picture may
have been stored or deleted. With --json the field outcome of the error is then unknown.`

// app is one run of the command.
type app struct {
	server, tokenFile string
	json, quiet       bool
	insecure          bool
	retries           int

	client *client.Client
	bar    *progressbar.ProgressBar
	hint   string // what the user can do after an error
}

// run runs one command and returns the exit code.
func run(ctx context.Context, args []string) int {
	var a app
	root := a.commands()
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitSuccess
	}
	e, ok := errors.AsType[*client.Error](err)
	if !ok {
		e = localError("usage", err.Error())
	}
	if a.json || slices.Contains(args, "--json") { // wrong usage may be found before the flags are parsed
		a.print(e)
	}
	change := map[bool]string{false: "stored", true: "deleted"}[cmd.Name() == "rm"]
	fmt.Fprintln(os.Stderr, "cats:", a.message(e, change))
	return exitCode(e)
}

func (a *app) commands() *cobra.Command {
	root := &cobra.Command{
		Use: "cats", Short: "Store, download, link and delete pictures at a cats-api", Long: help,
		Version: version.Print("cats"), SilenceErrors: true, SilenceUsage: true,
	}
	root.SetVersionTemplate("{{.Version}}\n")
	flags := root.PersistentFlags()
	server := cmp.Or(os.Getenv("CATS_SERVER"), "http://localhost:8080")
	flags.StringVar(&a.server, "server", server, "URL of the service; variable CATS_SERVER")
	flags.StringVar(&a.tokenFile, "token-file", "", "file with the token; otherwise the variable CATS_TOKEN")
	flags.BoolVar(&a.json, "json", false, "print one JSON object on stdout; for errors the problem document")
	flags.BoolVar(&a.insecure, "insecure", false, "send the token over plain HTTP to other machines too")
	flags.BoolVar(&a.quiet, "quiet", false, "print only errors, signed URLs, and the picture of get USER -")
	flags.IntVar(&a.retries, "retries", 3, "number of retries, where they are safe")
	root.AddCommand(a.putCommand(), a.getCommand(), a.urlCommand(), a.rmCommand())
	return root
}

func (a *app) putCommand() *cobra.Command {
	var opts client.PutOptions
	put := a.command("put USER FILE|-", "Store a picture", cobra.ExactArgs(2), func(ctx context.Context, args []string) error {
		opts.IfMatch = quoteETag(opts.IfMatch)
		return a.put(ctx, args[0], args[1], opts)
	})
	put.Long = "Store FILE, or stdin, as the picture of USER.\n\n" +
		"A file that is larger than the service accepts is uploaded directly to storage, if the\n" +
		"service permits it. If such an upload of more than 64 MiB is interrupted, the same\n" +
		"command continues it, for about an hour."
	put.Flags().BoolVar(&opts.Create, "create", false, "only if the user has no picture (If-None-Match: *)")
	put.Flags().StringVar(&opts.IfMatch, "if-match", "", "only if the stored picture has this `ETAG`")
	put.MarkFlagsMutuallyExclusive("create", "if-match")
	return put
}

func (a *app) getCommand() *cobra.Command {
	var force bool
	oneOrTwo := cobra.RangeArgs(1, 2)
	get := a.command("get USER [FILE|-]", "Download a picture", oneOrTwo, func(ctx context.Context, args []string) error {
		return a.get(ctx, args[0], append(args, "")[1], force)
	})
	get.Long = "Download the picture of USER to FILE, to stdout, or to a file in the current directory with\n" +
		"the name of USER and the extension of the picture's type. The download is compared with the\n" +
		"stored picture: its size, and its MD5 if storage has one. Storage has none of direct uploads\n" +
		"above 256 MiB."
	get.Flags().BoolVar(&force, "force", false, "replace the file if it exists")
	return get
}

func (a *app) urlCommand() *cobra.Command {
	var opts client.LinkOptions
	link := a.command("url USER", "Print a signed URL", cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		return a.url(ctx, args[0], opts)
	})
	link.Flags().StringVar(&opts.TTL, "ttl", "", "lifetime of the URL, such as 10m")
	link.Flags().StringVar(&opts.Download, "download", "", "browsers save the picture under this file `NAME`")
	return link
}

func (a *app) rmCommand() *cobra.Command {
	var ifMatch string
	rm := a.command("rm USER", "Delete a picture", cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		return a.rm(ctx, args[0], quoteETag(ifMatch))
	})
	rm.Flags().StringVar(&ifMatch, "if-match", "", "only if the stored picture has this `ETAG`")
	return rm
}

// command returns a command whose first argument is a user.
func (a *app) command(use, short string, args cobra.PositionalArgs, do func(context.Context, []string) error) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Args: args,
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 1 && strings.Contains(use, "FILE") {
				return nil, cobra.ShellCompDirectiveDefault // file names
			}
			return nil, cobra.ShellCompDirectiveNoFileComp // the API does not list users
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if slices.Contains(args, "") {
				return errors.New("an argument is empty")
			}
			for _, name := range []string{"if-match", "ttl", "download", "token-file"} { // an unset variable must not drop a precondition
				if f := cmd.Flags().Lookup(name); f != nil && f.Changed && f.Value.String() == "" {
					return fmt.Errorf("--%s is empty", name)
				}
			}
			if err := a.connect(); err != nil {
				return err
			}
			return do(cmd.Context(), args)
		},
	}
}

// connect makes the client by the flags. It sends nothing.
func (a *app) connect() (err error) {
	if a.retries < 0 {
		return errors.New("--retries must be 0 or more")
	}
	token := os.Getenv("CATS_TOKEN")
	if a.tokenFile != "" {
		text, err := os.ReadFile(a.tokenFile)
		if err != nil {
			return fileError(err)
		}
		if token = string(bytes.TrimSpace(text)); token == "" {
			return fmt.Errorf("--token-file: %s is empty", a.tokenFile)
		}
	}
	a.bar = a.newBar("", 0)
	opts := client.Options{Token: token, AllowPlainHTTP: a.insecure, MaxRetries: a.retries, OnRetry: a.noteRetry}
	a.client, err = client.New(a.server, opts)
	switch {
	case errors.Is(err, client.ErrPlainHTTP):
		return fmt.Errorf("%w: use an https URL for --server, or --insecure if you trust the network", err)
	case err != nil:
		return fmt.Errorf("--server or the token: %w", err)
	}
	return nil
}

// quoteETag adds the quotes that a shell may have removed from an ETag.
func quoteETag(etag string) string {
	if etag == "" || etag == "*" || strings.HasSuffix(etag, `"`) {
		return etag
	}
	return `"` + etag + `"`
}
