package web

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/gorilla/mux"
	"github.com/prometheus/client_golang/prometheus"

	"cats.example/shared/config"
)

// document is what these tests read of openapi.json.
type document struct {
	Paths      map[string]map[string]json.RawMessage `json:"paths"`
	Components struct {
		Parameters map[string]struct {
			Schema struct {
				Enum []string `json:"enum"`
			} `json:"schema"`
		} `json:"parameters"`
		Responses map[string]struct {
			Content map[string]struct {
				Schema struct {
					Properties struct {
						Status struct {
							Const int `json:"const"`
						} `json:"status"`
						Code struct {
							Enum []string `json:"enum"`
						} `json:"code"`
					} `json:"properties"`
				} `json:"schema"`
				Examples map[string]json.RawMessage `json:"examples"`
			} `json:"content"`
		} `json:"responses"`
		Examples map[string]struct {
			Value problem `json:"value"`
		} `json:"examples"`
	} `json:"components"`
}

func readDocument(t *testing.T) (d document) {
	t.Helper()
	if err := json.Unmarshal(must(written.ReadFile("openapi.json")), &d); err != nil {
		t.Fatal(err)
	}
	return d
}

func TestTheDocumentHasTheRoutes(t *testing.T) {
	documented := map[string][]string{}
	for path, item := range readDocument(t).Paths {
		for key := range item {
			if key != "parameters" {
				documented[path] = append(documented[path], strings.ToUpper(key))
			}
		}
		slices.Sort(documented[path])
	}
	// What there is, the router says, and of its methods, OPTIONS.
	reg := prometheus.NewRegistry()
	slots := newSlots(0, reg)
	requests := newRequests(slots, reg)
	var options Options
	if err := config.Parse(&options, nil); err != nil {
		t.Fatal(err)
	}
	r := newRouter(&memory{}, options, requests, newGuard(options, slots, slog.New(slog.DiscardHandler), reg), newMetrics(reg))
	there := map[string][]string{}
	err := r.Walk(func(route *mux.Route, _ *mux.Router, _ []*mux.Route) error {
		path, err := route.GetPathTemplate()
		if trimmed := strings.TrimSuffix(path, "/"); err != nil || there[trimmed] != nil {
			return err // it leads to that one
		}
		rec := httptest.NewRecorder()
		r.ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), http.MethodOptions, regexp.MustCompile(`{\w+}`).ReplaceAllString(path, "x"), nil))
		there[path] = strings.Split(rec.Header().Get("Allow"), ", ")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(there, documented); diff != "" {
		t.Errorf("paths and methods (- code, + document):\n%s", diff)
	}
}

// status has the HTTP status of every error that the sources declare, by code.
var status = func() map[string]int {
	statuses := map[string]int{}
	for code := 400; code < 600; code++ {
		statuses[strings.ReplaceAll(http.StatusText(code), " ", "")] = code
	}
	declared, literal := regexp.MustCompile(`\bError\{Code: "(\w+)", Status: http\.Status(\w+),`), regexp.MustCompile(`(&apierror\.|&|\()Error\{`)
	all := map[string]int{}
	for _, pattern := range []string{"*.go", "../../../shared/apierror/*.go"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			panic(err)
		}
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			source, err := os.ReadFile(file)
			if err != nil {
				panic(err)
			}
			errs := declared.FindAllStringSubmatch(string(source), -1)
			if n := len(literal.FindAll(source, -1)); n != len(errs) {
				panic(fmt.Sprintf("%s declares %d errors; %d of them start with a code and a status", file, n, len(errs)))
			}
			for _, e := range errs {
				all[e[1]] = statuses[e[2]]
			}
		}
	}
	return all
}()

func TestTheDocumentHasTheErrors(t *testing.T) {
	d := readDocument(t)
	documented := map[string]int{}
	for name, response := range d.Components.Responses {
		problems, ok := response.Content["application/problem+json"]
		if !ok {
			continue
		}
		codes := problems.Schema.Properties.Code.Enum
		for _, code := range codes {
			if s := problems.Schema.Properties.Status.Const; documented[code] != 0 && documented[code] != s {
				t.Errorf("%s has %s with the status %d, another has %d", name, code, s, documented[code])
			}
			documented[code] = problems.Schema.Properties.Status.Const
		}
		if diff := cmp.Diff(slices.Sorted(slices.Values(codes)), slices.Sorted(maps.Keys(problems.Examples))); diff != "" {
			t.Errorf("codes and examples of %s:\n%s", name, diff)
		}
	}
	if diff := cmp.Diff(status, documented); diff != "" {
		t.Errorf("statuses by code (- code, + document):\n%s", diff)
	}
	for code, example := range d.Components.Examples {
		want := example.Value
		want.Code, want.Status, want.Title = code, status[code], http.StatusText(status[code])
		if example.Value != want {
			t.Errorf("the example of %s is %+v; want %+v", code, example.Value, want)
		}
	}
}

func TestTheDocumentHasTheFilesOfThePages(t *testing.T) {
	parameters := readDocument(t).Components.Parameters
	for name, there := range map[string][]string{"asset": slices.Sorted(maps.Keys(docsParts)), "file": slices.Sorted(maps.Keys(pageParts))} {
		if diff := cmp.Diff(there, slices.Sorted(slices.Values(parameters[name].Schema.Enum))); diff != "" {
			t.Errorf("names for {%s} (- code, + document):\n%s", name, diff)
		}
	}
	for _, m := range regexp.MustCompile(`"docs/([^"]+)"`).FindAllSubmatch(must(written.ReadFile("docs/index.html")), -1) {
		if _, ok := docsParts[string(m[1])]; !ok {
			t.Errorf("the page asks for %s, which is not there", m[1])
		}
	}
}

func TestFilesAreServedAsTheyAreAskedFor(t *testing.T) {
	h, _, _ := newWeb(t)
	for path, contentType := range map[string]string{
		"/openapi.json": "application/json", "/docs": "text/html; charset=utf-8", "/docs/init.js": "text/javascript; charset=utf-8",
		"/docs/swagger-ui.css": "text/css; charset=utf-8", "/docs/swagger-ui-bundle.js": "text/javascript; charset=utf-8",
	} {
		plain := sendWith(t, h, "GET", path, nil)
		zipped := sendWith(t, h, "GET", path, nil, "Accept-Encoding", "br, GZIP;q=0.5")
		unpacked, err := gzip.NewReader(zipped.Body)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		got, err := io.ReadAll(unpacked)
		if err != nil || !bytes.Equal(got, plain.Body.Bytes()) || len(got) < 100 {
			t.Errorf("%s: %d bytes, packed they are %d others: %v", path, plain.Body.Len(), len(got), err)
		}
		tags := [2]string{plain.Header().Get("ETag"), zipped.Header().Get("ETag")}
		if tags[0] == tags[1] || tags[0] == "" || tags[1] == "" {
			t.Errorf("%s: the tags are %q", path, tags)
		}
		for i, rec := range []*httptest.ResponseRecorder{plain, zipped} {
			header := rec.Header()
			if rec.Code != 200 || header.Get("Content-Type") != contentType || header.Get("Vary") != "Accept-Encoding" || header.Get("Content-Encoding") != []string{"", "gzip"}[i] {
				t.Errorf("%s: %d %v", path, rec.Code, header)
			}
			if policy := header.Get("Content-Security-Policy"); strings.Contains(policy, "unsafe") || strings.Contains(policy, "script-src 'self'") != (path == "/docs") {
				t.Errorf("%s: the policy is %q", path, policy)
			}
			accept := []string{"Accept-Encoding", []string{"gzip;q=0", "gzip"}[i]}
			if again := sendWith(t, h, "GET", path, nil, append(accept, "If-None-Match", tags[i])...); again.Code != 304 || again.Body.Len() != 0 {
				t.Errorf("%s with the tag: %d", path, again.Code)
			}
			if head := sendWith(t, h, "HEAD", path, nil, accept...); head.Code != 200 || head.Header().Get("Content-Length") != header.Get("Content-Length") {
				t.Errorf("HEAD %s: %d %v", path, head.Code, head.Header())
			}
		}
	}
	for _, name := range []string{"x", "index.html", "oauth2-redirect.html", "swagger-ui.css.gz", "..%2Fopenapi.json"} {
		wantProblem(t, send(t, h, "GET", "/docs/"+name, "", nil), 404, "no_such_path")
	}
}
