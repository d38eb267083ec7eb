package api

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pb33f/libopenapi"
	validator "github.com/pb33f/libopenapi-validator"
	"github.com/pb33f/libopenapi-validator/config"
	"github.com/pb33f/libopenapi-validator/errors"
	"github.com/pb33f/libopenapi-validator/paths"
	"github.com/pb33f/libopenapi-validator/responses"
	v3 "github.com/pb33f/libopenapi/datamodel/high/v3"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

// contract is openapi.json, and which of its answers have been seen.
type contract struct {
	model    *v3.Document
	whole    validator.Validator
	bodiless validator.Validator // for HEAD

	mu      sync.Mutex
	checked int
	seen    map[string]bool // such as "GET /cat/{user} 404 not_found"
}

func readContract(t *testing.T) *contract {
	t.Helper()
	text, err := os.ReadFile(harness.Root("frontend", "internal", "web", "openapi.json"))
	if err != nil {
		t.Fatal(err)
	}
	document, err := libopenapi.NewDocument(text)
	if err != nil {
		t.Fatal(err)
	}
	model, err := document.BuildV3Model()
	if err != nil {
		t.Fatal(err)
	}
	c := &contract{model: &model.Model, seen: map[string]bool{}}
	var faults []error
	if c.whole, faults = validator.NewValidator(document, config.WithFormatAssertions()); len(faults) > 0 {
		t.Fatal(faults)
	}
	c.bodiless = validator.NewValidatorFromV3Model(c.model, config.WithoutResponseBodyValidation())
	if ok, faults := c.whole.ValidateDocument(); !ok {
		t.Fatalf("openapi.json is no OpenAPI document: %s", told(faults))
	}
	return c
}

// told returns what a validator found, in one line each.
func told(faults []*errors.ValidationError) string {
	var b strings.Builder
	for _, f := range faults {
		fmt.Fprintf(&b, "\n  %s: %s", f.Message, f.Reason)
		for _, s := range f.SchemaValidationErrors {
			fmt.Fprintf(&b, "\n    %s %s: %s", s.FieldPath, s.KeywordLocation, s.Reason)
		}
	}
	return b.String()
}

// everywhere are the headers that the document's first paragraphs speak of, and the
// wire's own. The first three must be there.
var everywhere = []string{
	"Content-Security-Policy", "Cross-Origin-Opener-Policy", "Referrer-Policy", "X-Content-Type-Options",
	"Access-Control-Allow-Headers", "Access-Control-Allow-Methods", "Access-Control-Allow-Origin", "Access-Control-Expose-Headers", "Access-Control-Max-Age", "Vary",
	"Connection", "Content-Length", "Content-Type", "Date", "Transfer-Encoding",
}

// check holds a request, whose body was sent, and its answer against the document. A
// request that the document does not allow must have been refused.
func (c *contract) check(r *http.Request, sent []byte, a harness.Response) (faults []string) {
	r = r.Clone(r.Context())
	r.Body = io.NopCloser(bytes.NewReader(sent))
	header := http.Header{} // as one line each, which several are the same as
	for name, values := range a.Header {
		header.Set(name, strings.Join(values, ", "))
	}
	got := &http.Response{StatusCode: a.StatusCode, Header: header, Body: io.NopCloser(bytes.NewReader(a.Body)), Request: r}
	var problem struct {
		Code string `json:"code"`
	}
	if strings.HasPrefix(a.Header.Get("Content-Type"), "application/problem+json") && r.Method != http.MethodHead {
		if err := json.Unmarshal(a.Body, &problem); err != nil {
			faults = append(faults, err.Error())
		}
	}
	var documented *v3.Response
	item, _, path := paths.FindPath(r, c.model, nil)
	var op *v3.Operation
	if item != nil {
		op = item.GetOperations().GetOrZero(strings.ToLower(r.Method))
	}
	if op != nil {
		documented = op.Responses.Codes.GetOrZero(fmt.Sprint(a.StatusCode))
		v := c.whole
		if r.Method == http.MethodHead {
			v = c.bodiless
		}
		if ok, found := v.ValidateHttpResponse(r, got); !ok {
			faults = append(faults, told(found))
		}
		if a.StatusCode < http.StatusBadRequest {
			if ok, found := v.ValidateHttpRequest(r); !ok {
				faults = append(faults, "it should have been refused: "+told(found))
			}
		}
	} else {
		faults = append(faults, c.checkOutside(r, got, path, &documented)...)
	}
	for _, name := range everywhere[:4] {
		if a.Header.Get(name) == "" {
			faults = append(faults, name+" is missing")
		}
	}
	for name := range a.Header {
		known := slices.Contains(everywhere, name)
		if documented != nil && !known {
			for declared := range documented.Headers.KeysFromOldest() {
				known = known || strings.EqualFold(declared, name)
			}
		}
		if !known {
			faults = append(faults, "the header "+name+" is not documented")
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.checked++
	if op != nil {
		c.seen[strings.TrimSpace(fmt.Sprintf("%s %s %d %s", r.Method, path, a.StatusCode, problem.Code))] = true
	}
	return faults
}

// checkOutside holds the answer to a request of which the document has no operation
// against what it says of those.
func (c *contract) checkOutside(r *http.Request, got *http.Response, path string, documented **v3.Response) (faults []string) {
	name := map[int]string{404: "NoPath", 405: "MethodNotAllowed", 414: "URITooLong", 421: "Misdirected", 429: "RateLimited", 403: "MayNotChange", 503: "Overloaded"}[got.StatusCode]
	if got.StatusCode == http.StatusTemporaryRedirect && strings.HasSuffix(r.URL.Path, "/") {
		*documented = c.model.Components.Responses.GetOrZero("ToPicture")
		return nil
	}
	if name == "" || (got.StatusCode == 405) != (path != "") && (name == "NoPath" || name == "MethodNotAllowed") {
		return []string{fmt.Sprintf("%d is not documented for a request that is not", got.StatusCode)}
	}
	*documented = c.model.Components.Responses.GetOrZero(name)
	if ok, found := responses.ValidateResponseHeaders(r, got, (*documented).Headers, r.URL.Path, fmt.Sprint(got.StatusCode)); !ok {
		faults = append(faults, told(found))
	}
	if r.Method == http.MethodHead {
		return faults
	}
	if ok, found := responses.ValidateResponseSchema(&responses.ValidateResponseSchemaInput{
		Request: r, Response: got, Version: 3.1, Schema: (*documented).Content.GetOrZero("application/problem+json").Schema.Schema(),
	}); !ok {
		faults = append(faults, told(found))
	}
	return faults
}

// documented returns all answers that the document knows, as seen has them.
func (c *contract) documented() (all []string) {
	for path, item := range c.model.Paths.PathItems.FromOldest() {
		for method, op := range item.GetOperations().FromOldest() {
			for status, response := range op.Responses.Codes.FromOldest() {
				key := fmt.Sprintf("%s %s %s", strings.ToUpper(method), path, status)
				var codes []string
				for mediaType, content := range response.Content.FromOldest() {
					if mediaType == "application/problem+json" && method != "head" {
						for _, code := range content.Schema.Schema().Properties.GetOrZero("code").Schema().Enum {
							codes = append(codes, key+" "+code.Value)
						}
					}
				}
				if codes == nil {
					codes = []string{key}
				}
				all = append(all, codes...)
			}
		}
	}
	return all
}

// ask sends a call and checks it and its answer, whose status it wants.
func (c *contract) ask(t *testing.T, sys *stack.System, status int, k harness.Call) harness.Response {
	t.Helper()
	req := k.Request(t, sys)
	resp, err := harness.Client().Do(req)
	if err != nil {
		t.Errorf("%s %s: %v", k.Method, k.Target, err)
		return harness.Response{Response: &http.Response{}}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Error(err)
	}
	return c.answered(t, sys, status, k, harness.Response{Response: resp, Body: body})
}

func (c *contract) answered(t *testing.T, sys *stack.System, status int, k harness.Call, a harness.Response) harness.Response {
	t.Helper()
	short := func(s string) string { return s[:min(len(s), 400)] }
	what := fmt.Sprintf("%s %s: %d %s", k.Method, short(k.Target), a.StatusCode, short(string(a.Body)))
	for _, f := range c.check(k.Request(t, sys), k.Body, a) {
		t.Errorf("%s\n%s", what, f)
	}
	if a.StatusCode != status {
		t.Errorf("%s; want %d", what, status)
	}
	return a
}

// half sends all of a call but its last byte, and then, if it ends, nothing more.
func (c *contract) half(t *testing.T, sys *stack.System, status int, ends bool, k harness.Call) {
	t.Helper()
	conn := harness.Dial(t, sys)
	req := k.Request(t, sys)
	fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n", k.Method, k.Target, len(k.Body))
	_ = req.Header.Write(conn)
	_, _ = conn.Write(append([]byte("\r\n"), k.Body[:len(k.Body)-1]...))
	if ends {
		_ = conn.CloseWrite()
	}
	_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	resp, err := http.ReadResponse(bufio.NewReader(conn), req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	c.answered(t, sys, status, k, harness.Response{Response: resp, Body: body})
}
