package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"unicode"
	"unicode/utf16"

	"github.com/prometheus/common/version"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

const about = `cats stores, fetches, links and deletes pictures of a cats-api.

Where callers must be known, the token is in the variable CATS_TOKEN, or in the file
that --token-file names. No flag takes it: ps would show it to everybody.
It is sent over HTTPS, and over plain HTTP only to this machine, or with --insecure.

Exit codes:
  0  done
  1  anything else
  2  wrong usage
  3  there is no such picture
  4  the service refuses what it was sent (400, 413, 414, 415, 422)
  5  not allowed (401, 403)
  6  a condition does not hold, or another upload won (409, 412); get: the file is there
  7  try again later (408, 429, 503, a 5xx of storage or on the way, or not to be reached)
Ctrl-C and SIGTERM end it as such, which a shell shows as 130 and 143.

A failed put or rm has changed nothing, unless its message says that the picture may
have been stored or deleted. With --json the field outcome of the error is then unknown.`

// Exit codes, as about has them.
const (
	exitOther = iota + 1
	exitUsage
	exitNotFound
	exitRefused
	exitNotAllowed
	exitCondition
	exitLater
)

// options are the flags of all commands.
type options struct {
	server, tokenFile string
	json, quiet       bool
	insecure          bool
	retries           int
}

// conditions are on what is there before a picture is changed.
type conditions struct {
	create  bool
	ifMatch string
}

func (c conditions) header() http.Header {
	h := http.Header{}
	if c.create {
		h.Set("If-None-Match", "*")
	}
	if c.ifMatch != "" {
		h.Set("If-Match", quoted(c.ifMatch))
	}
	return h
}

// quoted is an entity tag with the quotes that a shell may have taken from it.
func quoted(etag string) string {
	if etag == "*" || strings.HasSuffix(etag, `"`) {
		return etag
	}
	return `"` + etag + `"`
}

// run runs one command and returns the exit code.
func run(ctx context.Context, args []string) int {
	var o options
	root := commands(&o)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	f, ok := errors.AsType[*failure](err)
	if !ok { // all that cobra says itself
		f = &failure{problem: problem{Title: "Usage", Detail: err.Error(), Code: "usage"}, exit: exitUsage, hint: "try cats --help"}
	}
	if o.json || slices.Contains(args, "--json") { // wrong usage may be found before the flags are read
		o.print(f.document())
	}
	fmt.Fprintln(os.Stderr, "cats:", f)
	return f.exit
}

func commands(o *options) *cobra.Command {
	root := &cobra.Command{
		Use: "cats", Short: "Pictures of a cats-api", Long: about,
		Version: version.Print("cats"), SilenceErrors: true, SilenceUsage: true,
	}
	root.SetVersionTemplate("{{.Version}}\n")
	server := os.Getenv("CATS_SERVER")
	if server == "" {
		server = "http://localhost:8080"
	}
	flags := root.PersistentFlags()
	flags.StringVar(&o.server, "server", server, "the service; the variable CATS_SERVER")
	flags.StringVar(&o.tokenFile, "token-file", "", "file of the token; else the variable CATS_TOKEN is")
	flags.BoolVar(&o.json, "json", false, "one JSON object on stdout; for errors the problem document")
	flags.BoolVar(&o.insecure, "insecure", false, "send the token over plain HTTP, to another machine too")
	flags.BoolVar(&o.quiet, "quiet", false, "nothing but errors, links, and a picture that goes to stdout")
	flags.IntVar(&o.retries, "retries", 3, "how often to try again where that is safe")

	var to conditions
	put := o.command("put USER FILE|-", "Store a picture", cobra.ExactArgs(2), func(ctx context.Context, c *client, args []string) error {
		return c.put(ctx, args[0], args[1], to)
	})
	put.Long = "Store FILE, or stdin, as the picture of USER.\n\n" +
		"What is larger than the service takes goes straight to storage, where that is possible.\n" +
		"When more than 64 MiB of that are interrupted, the same command goes on where it was, for about an hour."
	put.Flags().BoolVar(&to.create, "create", false, "only if there is none (If-None-Match: *)")
	put.Flags().StringVar(&to.ifMatch, "if-match", "", "only if the picture that is there has this `ETAG`")
	put.MarkFlagsMutuallyExclusive("create", "if-match")

	var force bool
	get := o.command("get USER [FILE|-]", "Fetch a picture", cobra.RangeArgs(1, 2), func(ctx context.Context, c *client, args []string) error {
		return c.get(ctx, args[0], append(args, "")[1], force)
	})
	get.Long = "Fetch the picture of USER into FILE, to stdout, or else into a file in this folder that is\n" +
		"called after USER and its type. What arrives is compared with what is stored: its size,\n" +
		"and its MD5 where storage has one, as it has of all but what went straight to it with more than 256 MiB."
	get.Flags().BoolVar(&force, "force", false, "replace the file that is there")

	var ttl, download string
	link := o.command("url USER", "Print a signed link", cobra.ExactArgs(1), func(ctx context.Context, c *client, args []string) error {
		return c.link(ctx, args[0], ttl, download)
	})
	link.Flags().StringVar(&ttl, "ttl", "", "how long it lives, such as 10m")
	link.Flags().StringVar(&download, "download", "", "have it saved under this file `NAME`")

	var there conditions
	rm := o.command("rm USER", "Delete a picture", cobra.ExactArgs(1), func(ctx context.Context, c *client, args []string) error {
		return c.remove(ctx, args[0], there)
	})
	rm.Flags().StringVar(&there.ifMatch, "if-match", "", "only if it has this `ETAG`")

	root.AddCommand(put, get, link, rm)
	return root
}

// command returns a command whose first argument is a user.
func (o *options) command(use, short string, args cobra.PositionalArgs, do func(context.Context, *client, []string) error) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Args: args,
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 1 && strings.Contains(use, "FILE") {
				return nil, cobra.ShellCompDirectiveDefault // files
			}
			return nil, cobra.ShellCompDirectiveNoFileComp // nobody can list users
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := o.client()
			if err != nil {
				return err
			}
			if slices.Contains(args, "") {
				return errors.New("an argument is empty")
			}
			for _, name := range []string{"if-match", "ttl", "download", "token-file"} { // such as a condition, of a variable that nothing has filled
				if f := cmd.Flags().Lookup(name); f != nil && f.Changed && f.Value.String() == "" {
					return fmt.Errorf("--%s is empty", name)
				}
			}
			return do(cmd.Context(), c, args)
		},
	}
}

// client returns a client as the flags say.
func (o *options) client() (*client, error) {
	u, err := url.Parse(o.server)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, errors.New("--server: want such as http://localhost:8080")
	}
	if o.retries < 0 {
		return nil, errors.New("--retries: want 0 or more")
	}
	token := os.Getenv("CATS_TOKEN")
	if o.tokenFile != "" {
		b, err := os.ReadFile(o.tokenFile)
		if err != nil {
			return nil, fileFailure(err)
		}
		if token = string(bytes.TrimSpace(b)); token == "" {
			return nil, fmt.Errorf("--token-file: %s is empty", o.tokenFile)
		}
	}
	if strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return nil, errors.New("the token holds what no token does, such as a space")
	}
	if token != "" && u.Scheme == "http" && !o.insecure && !onThisMachine(u.Hostname()) {
		return nil, fmt.Errorf("the token would go to %s unencrypted: use an https URL for --server, or --insecure if the network is trusted", u.Host)
	}
	return newClient(o, strings.TrimSuffix(u.String(), "/"), token), nil
}

// print writes a result of several fields, or a document of the service, on one line.
func (o *options) print(document any) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b) // which compacts a document of the service
	enc.SetEscapeHTML(false)
	if err := enc.Encode(document); err != nil {
		panic(err) // our own types, or JSON that was valid before
	}
	fmt.Println(escape(strings.TrimSpace(b.String())))
}

// result says what was done, to people.
func (o *options) result(format string, args ...any) {
	if !o.quiet && !o.json {
		fmt.Println(escape(fmt.Sprintf(format, args...)))
	}
}

// notice says what is going on, to people.
func (o *options) notice(format string, args ...any) {
	if !o.quiet && !o.json {
		fmt.Fprintln(os.Stderr, "cats:", escape(fmt.Sprintf(format, args...)))
	}
}

// watched reports whether somebody looks at the progress.
func (o *options) watched() bool {
	return !o.quiet && !o.json && term.IsTerminal(int(os.Stderr.Fd()))
}

// escape replaces the characters of s that can control a terminal or reorder its text by their form in JSON, \uXXXX:
// control characters, bidirectional overrides and all else that is not graphic. A byte that is not UTF-8 becomes U+FFFD.
// A JSON document means the same afterwards, because such characters are in its strings only.
func escape(s string) string {
	var b strings.Builder
	for _, r := range s {
		if unicode.IsGraphic(r) || r == '\u200c' || r == '\u200d' { // the joiners, which scripts and emoji need
			b.WriteRune(r)
			continue
		}
		for _, unit := range utf16.Encode([]rune{r}) {
			fmt.Fprintf(&b, `\u%04x`, unit)
		}
	}
	return b.String()
}
