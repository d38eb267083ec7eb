package web

import (
	"encoding/json"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus"

	"cats.example/shared/apierror"
)

// document is the part of openapi.json that these tests read.
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
				t.Errorf("%s has %s with status %d, another response with %d", name, code, s, documented[code])
			}
			documented[code] = problems.Schema.Properties.Status.Const
		}
		if diff := cmp.Diff(slices.Sorted(slices.Values(codes)), slices.Sorted(maps.Keys(problems.Examples))); diff != "" {
			t.Errorf("codes and examples of %s:\n%s", name, diff)
		}
	}
	statuses := map[string]int{}
	for code, e := range declared() {
		statuses[code] = e.Status
		example := d.Components.Examples[code].Value
		want := problem{"about:blank", http.StatusText(e.Status), e.Status, *e, example.RequestID}
		if slices.Contains([]string{"invalid_user", "invalid_argument", "method_not_allowed", "malformed_form", "partial_upload"}, code) {
			want.Detail = example.Detail // the example of a specific error
		}
		if diff := cmp.Diff(want, example, cmpopts.IgnoreUnexported(apierror.Error{}), cmpopts.IgnoreFields(apierror.Error{}, "Status", "RetryAfter")); diff != "" || example.Detail == "" {
			t.Errorf("the example of %s (- code, + document):\n%s", code, diff)
		}
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
