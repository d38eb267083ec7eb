package web

import (
	"encoding/json"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
)

// document is the part of openapi.json that these tests read.
type document struct {
	Paths      map[string]map[string]json.RawMessage
	Components struct {
		Parameters map[string]struct{ Schema struct{ Enum []string } }
		Responses  map[string]struct {
			Content map[string]struct {
				Examples map[string]json.RawMessage
				Schema   struct {
					Properties struct {
						Status struct{ Const int }
						Code   struct{ Enum []string }
					}
				}
			}
		}
	}
}

func readDocument(t *testing.T) (d document) {
	t.Helper()
	if err := json.Unmarshal(must(apiFiles.ReadFile("openapi.json")), &d); err != nil {
		t.Fatal(err)
	}
	return d
}

func TestOpenAPIHasTheRoutes(t *testing.T) {
	documented := map[string][]string{}
	for path, item := range readDocument(t).Paths {
		for key := range item {
			if key != "parameters" {
				documented[path] = append(documented[path], strings.ToUpper(key))
			}
		}
		slices.Sort(documented[path])
	}
	a := newAPI(t)
	a.deps.Registry = prometheus.NewRegistry()
	served := map[string][]string{}
	for path := range routes(newHandlers(a.options, a.deps), newMiddleware(a.options, a.deps)) {
		served[path] = strings.Split(a.send("OPTIONS", regexp.MustCompile(`{\w+}`).ReplaceAllString(path, "x"), nil).Header().Get("Allow"), ", ")
	}
	if diff := cmp.Diff(served, documented); diff != "" {
		t.Errorf("paths and methods (- code, + document):\n%s", diff)
	}
}

func TestOpenAPIHasTheErrors(t *testing.T) {
	documented, statuses := map[string]int{}, map[string]int{}
	for name, response := range readDocument(t).Components.Responses {
		problems := response.Content["application/problem+json"]
		codes, status := problems.Schema.Properties.Code.Enum, problems.Schema.Properties.Status.Const
		for _, code := range codes {
			if documented[code] != 0 && documented[code] != status {
				t.Errorf("%s has %s with status %d, another response with %d", name, code, status, documented[code])
			}
			documented[code] = status
		}
		if diff := cmp.Diff(slices.Sorted(slices.Values(codes)), slices.Sorted(maps.Keys(problems.Examples))); diff != "" {
			t.Errorf("codes and examples of %s:\n%s", name, diff)
		}
	}
	for code, e := range declared() {
		statuses[code] = e.Status
	}
	if diff := cmp.Diff(statuses, documented); diff != "" {
		t.Errorf("statuses by code (- code, + document):\n%s", diff)
	}
}

func TestOpenAPIHasTheFiles(t *testing.T) {
	parameters := readDocument(t).Components.Parameters
	for name, files := range map[string]assets{"asset": docsAssets, "file": pageAssets} {
		if diff := cmp.Diff(slices.Sorted(maps.Keys(files)), slices.Sorted(slices.Values(parameters[name].Schema.Enum))); diff != "" {
			t.Errorf("names for {%s} (- code, + document):\n%s", name, diff)
		}
	}
	for _, m := range regexp.MustCompile(`"docs/([^"]+)"`).FindAllSubmatch(must(apiFiles.ReadFile("docs/index.html")), -1) {
		if _, ok := docsAssets[string(m[1])]; !ok {
			t.Errorf("the page refers to %s, which does not exist", m[1])
		}
	}
}
