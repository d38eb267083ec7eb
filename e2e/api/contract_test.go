package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/gorillamux"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

// contract is openapi.json, and the set of its documented responses that the tests have seen.
type contract struct {
	doc    *openapi3.T
	router routers.Router

	mu   sync.Mutex
	seen map[string]bool // such as "GET /cat/{user} 404 not_found"
}

// readContract reads and validates openapi.json, including its examples.
func readContract(t *testing.T) *contract {
	t.Helper()
	doc, err := openapi3.NewLoader().LoadFromFile(harness.Root("frontend", "internal", "web", "openapi.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := doc.Validate(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"text/html", "text/css", "text/javascript", "image/svg+xml", "image/png"} {
		openapi3filter.RegisterBodyDecoder(text, openapi3filter.FileBodyDecoder)
	}
	router, err := gorillamux.NewRouter(doc)
	if err != nil {
		t.Fatal(err)
	}
	return &contract{doc: doc, router: router, seen: map[string]bool{}}
}

// headers are allowed in every response: the headers of the document's introduction, and of HTTP.
var headers = strings.Fields(`
	Content-Security-Policy Cross-Origin-Opener-Policy Referrer-Policy X-Content-Type-Options
	Access-Control-Allow-Headers Access-Control-Allow-Methods Access-Control-Allow-Origin Access-Control-Expose-Headers
	Access-Control-Max-Age Vary Connection Content-Length Content-Type Date Transfer-Encoding`)

// outside are the documented responses to requests for which the document has no operation.
var outside = map[int]string{
	307: "ToPicture", 403: "MayNotChange", 404: "NoPath", 405: "MethodNotAllowed",
	414: "URITooLong", 421: "Misdirected", 429: "RateLimited", 503: "Overloaded",
}

// check compares a request with the body sent and its response with the document. The server must have rejected a request that
// the document does not allow.
func (c *contract) check(r *http.Request, sent []byte, a harness.Response) (faults []error) {
	r = r.Clone(r.Context())
	r.Body = io.NopCloser(bytes.NewReader(sent))
	var problem struct {
		Code string `json:"code"`
	}
	if strings.HasPrefix(a.Header.Get("Content-Type"), "application/problem+json") && r.Method != http.MethodHead {
		faults = append(faults, json.Unmarshal(a.Body, &problem))
	}
	route, params, err := c.router.FindRoute(r)
	documented := c.doc.Components.Responses[outside[a.StatusCode]]
	if err == nil {
		documented = route.Operation.Responses.Status(a.StatusCode)
	}
	if documented == nil {
		return append(faults, fmt.Errorf("the status %d is not documented", a.StatusCode))
	}
	if err == nil && a.StatusCode < http.StatusBadRequest {
		if err := openapi3filter.ValidateRequest(r.Context(), &openapi3filter.RequestValidationInput{
			Request: r, Route: route, PathParams: params, Options: &openapi3filter.Options{AuthenticationFunc: openapi3filter.NoopAuthenticationFunc},
		}); err != nil {
			faults = append(faults, fmt.Errorf("the server must reject the request: %w", err))
		}
	}
	if route != nil || a.StatusCode != http.StatusTemporaryRedirect {
		faults = append(faults, c.checkResponse(r, documented, a))
	}
	allowed := slices.Clone(headers)
	for name := range documented.Value.Headers {
		allowed = append(allowed, http.CanonicalHeaderKey(name))
	}
	for name := range a.Header {
		if !slices.Contains(allowed, name) {
			faults = append(faults, fmt.Errorf("the header %s is not documented", name))
		}
	}
	if route != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.seen[strings.TrimSpace(fmt.Sprintf("%s %s %d %s", r.Method, route.Path, a.StatusCode, problem.Code))] = true
	}
	return faults
}

// checkResponse compares a response with its description in the document. openapi3filter skips responses to HEAD and redirects,
// so checkResponse presents each as the response with status 200 to a GET.
func (c *contract) checkResponse(r *http.Request, documented *openapi3.ResponseRef, a harness.Response) error {
	header := http.Header{}
	for name, values := range a.Header {
		header.Set(name, strings.Join(values, ", ")) // equivalent to several lines
	}
	get := r.Clone(r.Context())
	get.Method = http.MethodGet
	return openapi3filter.ValidateResponse(r.Context(), &openapi3filter.ResponseValidationInput{
		RequestValidationInput: &openapi3filter.RequestValidationInput{Request: get, Route: &routers.Route{
			Spec: c.doc, Operation: &openapi3.Operation{Responses: openapi3.NewResponses(openapi3.WithStatus(http.StatusOK, documented))},
		}},
		Status: http.StatusOK, Header: header, Body: io.NopCloser(bytes.NewReader(a.Body)),
		Options: &openapi3filter.Options{ExcludeResponseBody: r.Method == http.MethodHead},
	})
}

// documented returns all documented responses, in the form of the keys of seen.
func (c *contract) documented() (all []string) {
	for path, item := range c.doc.Paths.Map() {
		for method, op := range item.Operations() {
			for status, response := range op.Responses.Map() {
				key := fmt.Sprintf("%s %s %s", method, path, status)
				content := response.Value.Content["application/problem+json"]
				if content == nil || method == http.MethodHead {
					all = append(all, key)
					continue
				}
				for _, code := range content.Schema.Value.Properties["code"].Value.Enum {
					all = append(all, fmt.Sprint(key, " ", code))
				}
			}
		}
	}
	return all
}

// send sends calls and compares them and their responses with the document. It fails the test unless all have this status. It
// returns the last response.
func (c *contract) send(t *testing.T, sys *stack.System, status int, calls ...harness.Call) (a harness.Response) {
	t.Helper()
	for _, k := range calls {
		a = k.Do(t, sys)
		c.wantResponse(t, sys, status, k, a)
	}
	return a
}

func (c *contract) wantResponse(t *testing.T, sys *stack.System, status int, k harness.Call, a harness.Response) {
	t.Helper()
	if err := errors.Join(c.check(k.Request(t, sys), k.Body, a)...); err != nil || a.StatusCode != status {
		t.Errorf("%s %.400s: %d %.400s; want %d\n%v", k.Method, k.Target, a.StatusCode, a.Body, status, err)
	}
}

// sendHalf sends calls without their last bytes, and then closes its side of the connections if end is true.
func (c *contract) sendHalf(t *testing.T, sys *stack.System, status int, end bool, calls ...harness.Call) {
	t.Helper()
	for _, k := range calls {
		conn, req := harness.Dial(t, sys), k.Request(t, sys)
		var raw bytes.Buffer
		if err := req.Write(&raw); err != nil {
			t.Fatal(err)
		}
		_, _ = conn.Write(raw.Bytes()[:raw.Len()-1])
		if end {
			_ = conn.CloseWrite()
		}
		c.wantResponse(t, sys, status, k, harness.ReadResponse(t, conn))
	}
}
