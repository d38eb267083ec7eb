package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf16"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"

	"cats.example/cats/client"
)

// Exit codes, as in help.
const (
	exitSuccess = iota
	exitOther
	exitUsage
	exitNotFound
	exitRejected
	exitNotPermitted
	exitPrecondition
	exitLater
)

// exitCode returns the exit code of an error.
func exitCode(e *client.Error) int {
	if e.Temporary() {
		return exitLater
	}
	switch e.Code {
	case "usage":
		return exitUsage
	case "exists", client.CodeConflict:
		return exitPrecondition
	case client.CodeUnexpectedResponse, "no_such_path", "no_such_upload", "archived", "immutable", "leased", "rejected_by_storage":
		return exitOther // although the status is 404 or 409
	}
	switch e.Status {
	case 404:
		return exitNotFound
	case 400, 413, 414, 415, 422:
		return exitRejected
	case 401, 403:
		return exitNotPermitted
	case 409, 412:
		return exitPrecondition
	}
	return exitOther
}

// localError returns an error that the command itself found, as a problem document without a status.
func localError(code, detail string) *client.Error {
	return &client.Error{Type: "about:blank", Title: strings.ToUpper(code[:1]) + code[1:], Detail: detail, Code: code}
}

func fileError(err error) error { return localError("file", err.Error()) }

// message returns one line: the error, what the user can do, and the ID by which the operator finds the request. change is what
// the command may have done to the picture.
func (a *app) message(e *client.Error, change string) string {
	parts := []string{e.Detail, hintFor(e), a.hint}
	if e.Outcome == client.OutcomeUnknown {
		parts = append(parts, "the picture may have been "+change)
	}
	if e.RetryAfter > 0 {
		parts = append(parts, fmt.Sprintf("the service asks to wait %v", e.RetryAfter))
	}
	line := strings.Join(slices.DeleteFunc(parts, func(s string) bool { return s == "" }), "; ")
	if e.RequestID != "" {
		line += " (request " + e.RequestID + ")"
	}
	return escape(line)
}

func hintFor(e *client.Error) string {
	op, _ := errors.AsType[*net.OpError](e.Unwrap())
	switch {
	case e.Code == "usage":
		return "try cats --help"
	case e.Code == "exists":
		return "--force replaces it"
	case e.Code == "no_such_path", e.Code == client.CodeUnexpectedResponse && e.Status != 0 && !e.Temporary():
		return "is --server right?"
	case e.Code == client.CodeUnreachable && op != nil && op.Op == "dial":
		return "is it running? make run starts one on this machine; --server or CATS_SERVER names another"
	case e.Code == "unauthenticated":
		return "give a token of this service that has not expired: CATS_TOKEN or --token-file"
	}
	return ""
}

// print writes a JSON document on one line.
func (a *app) print(document any) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(document) // types of this program have no errors
	fmt.Println(escape(strings.TrimSpace(b.String())))
}

// result prints the result for people.
func (a *app) result(format string, args ...any) {
	if !a.quiet && !a.json {
		fmt.Println(escape(fmt.Sprintf(format, args...)))
	}
}

// noteRetry prints that the client will try again.
func (a *app) noteRetry(e *client.Error, wait time.Duration) {
	if !a.quiet && !a.json {
		_ = a.bar.Clear() // until the next advance
		fmt.Fprintln(os.Stderr, "cats:", escape(fmt.Sprintf("%s; trying again in %v", e.Detail, wait.Round(100*time.Millisecond))))
	}
}

// escape replaces the characters of s that can control a terminal or reorder its text by their form in JSON, \uXXXX:
// control characters, bidirectional overrides and all others that are not graphic. A byte that is not UTF-8 becomes U+FFFD.
// A JSON document keeps its meaning, because such characters are in its strings only.
func escape(s string) string {
	var b strings.Builder
	for _, r := range s {
		if unicode.IsGraphic(r) || r == '\u200c' || r == '\u200d' { // scripts and emoji need the joiners
			b.WriteRune(r)
			continue
		}
		for _, unit := range utf16.Encode([]rune{r}) {
			fmt.Fprintf(&b, `\u%04x`, unit)
		}
	}
	return b.String()
}

// newBar returns a progress bar, which is visible if stderr is a terminal. size is in bytes, -1 if it is unknown.
func (a *app) newBar(title string, size int64) *progressbar.ProgressBar {
	return progressbar.NewOptions64(size,
		progressbar.OptionSetVisibility(!a.quiet && !a.json && size != 0 && term.IsTerminal(int(os.Stderr.Fd()))),
		progressbar.OptionSetWriter(os.Stderr),
		progressbar.OptionSetDescription(escape(title)),
		progressbar.OptionShowBytes(true), progressbar.OptionUseIECUnits(true),
		progressbar.OptionSetWidth(30), progressbar.OptionThrottle(100*time.Millisecond),
		progressbar.OptionSetRenderBlankState(true), progressbar.OptionClearOnFinish(),
	)
}

// advance moves the bar. n is negative if bytes must be transferred again.
func (a *app) advance(n int64) { _ = a.bar.Add64(n) } // an error of the terminal must not end the transfer

// removeBar removes the bar from the terminal.
func (a *app) removeBar() {
	_ = a.bar.Exit() // as in advance
	_ = a.bar.Clear()
}
