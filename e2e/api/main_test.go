// Package api tests the HTTP API: pictures, forms, preconditions, signed URLs, openapi.json.
package api

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }

// sizes are of pictures that the signer stores with one request and with several.
var sizes = []int{5000, harness.OneBlob + 5000}

// sendAll uploads content as the picture of user in each way and returns the responses.
func sendAll(t *testing.T, sys *stack.System, user string, content []byte) map[string]harness.Response {
	t.Helper()
	url := sys.URL + "/cat/" + user
	chunked, err := harness.Try(t.Context(), "PUT", url, "text/html", harness.Chunked{Reader: bytes.NewReader(content)})
	if err != nil {
		t.Fatal(err)
	}
	contentType, body := harness.Form(t, content)
	all := map[string]harness.Response{
		"PUT": harness.Do(t, "PUT", url, "text/html", content), "chunked PUT": chunked, "POST": harness.Do(t, "POST", url, contentType, body),
	}
	if harness.Elsewhere == nil { // which may not accept direct uploads
		k := harness.NewUploadSession(t, sys, user, int64(len(content)))
		k.Send(t, bytes.NewReader(content), int64(len(content)))
		all["direct upload"] = k.Commit(t, sys, user, "")
	}
	return all
}

// readTable returns the lines of a file in testdata, split at tabs, without comments.
func readTable(t *testing.T, name string) (rows [][]string) {
	t.Helper()
	for line := range strings.Lines(readFile(t, name)) {
		if !strings.HasPrefix(line, "#") {
			rows = append(rows, strings.Split(strings.TrimSuffix(line, "\n"), "\t"))
		}
	}
	return rows
}

var repeated = regexp.MustCompile(`\{(\d+)(.*?)\}`)

// readFile returns a file in testdata. In it, {N TEXT} stands for N times TEXT, in which \n is a line end.
func readFile(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return repeated.ReplaceAllStringFunc(string(text), func(s string) string {
		m := repeated.FindStringSubmatch(s)
		n, _ := strconv.Atoi(m[1])
		return strings.Repeat(strings.ReplaceAll(strings.TrimPrefix(m[2], " "), `\n`, "\n"), n)
	})
}
