package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pb33f/libopenapi"
	validator "github.com/pb33f/libopenapi-validator"
	"github.com/pb33f/libopenapi-validator/config"
	"github.com/pb33f/libopenapi-validator/errors"
	"github.com/pb33f/libopenapi-validator/paths"
	"github.com/pb33f/libopenapi-validator/responses"
	"github.com/pb33f/libopenapi-validator/schema_validation"
	v3 "github.com/pb33f/libopenapi/datamodel/high/v3"

	"cats.example/local/stand"
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
	root, err := stand.FindRoot()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(root, "frontend", "internal", "web", "openapi.json"))
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
	"Content-Security-Policy", "Referrer-Policy", "X-Content-Type-Options",
	"Access-Control-Allow-Headers", "Access-Control-Allow-Methods", "Access-Control-Allow-Origin", "Access-Control-Expose-Headers", "Access-Control-Max-Age", "Vary",
	"Connection", "Content-Length", "Content-Type", "Date", "Transfer-Encoding",
}

// check holds a request, whose body was sent, and its answer against the document. A
// request that the document does not allow must have been refused.
func (c *contract) check(r *http.Request, sent []byte, a answer) (faults []string) {
	r = r.Clone(r.Context())
	r.Body = io.NopCloser(bytes.NewReader(sent))
	header := http.Header{} // as one line each, which several are the same as
	for name, values := range a.Header {
		header.Set(name, strings.Join(values, ", "))
	}
	got := &http.Response{StatusCode: a.StatusCode, Header: header, Body: io.NopCloser(bytes.NewReader(a.body)), Request: r}
	var problem struct {
		Code string `json:"code"`
	}
	if strings.HasPrefix(a.Header.Get("Content-Type"), "application/problem+json") && r.Method != http.MethodHead {
		if err := json.Unmarshal(a.body, &problem); err != nil {
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
	for _, name := range everywhere[:3] {
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
	name := map[int]string{404: "NoPath", 405: "MethodNotAllowed", 414: "URITooLong", 429: "RateLimited", 403: "MayNotChange", 503: "Overloaded"}[got.StatusCode]
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

// apiCall is a request to the public API.
type apiCall struct {
	method, target string
	body           []byte
	header         []string // names and values in turn
}

func (k apiCall) with(header ...string) apiCall {
	k.header = append(slices.Clone(k.header), header...)
	return k
}

func (k apiCall) request(t *testing.T, sys *stand.System) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), k.method, sys.URL+k.target, bytes.NewReader(k.body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(k.header); i += 2 {
		req.Header.Set(k.header[i], k.header[i+1])
	}
	return req
}

// ask sends a call and checks it and its answer, whose status it wants.
func (c *contract) ask(t *testing.T, sys *stand.System, status int, k apiCall) answer {
	t.Helper()
	req := k.request(t, sys)
	resp, err := client().Do(req)
	if err != nil {
		t.Errorf("%s %s: %v", k.method, k.target, err)
		return answer{Response: &http.Response{}}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Error(err)
	}
	return c.answered(t, sys, status, k, answer{resp, body})
}

func (c *contract) answered(t *testing.T, sys *stand.System, status int, k apiCall, a answer) answer {
	t.Helper()
	short := func(s string) string { return s[:min(len(s), 400)] }
	what := fmt.Sprintf("%s %s: %d %s", k.method, short(k.target), a.StatusCode, short(string(a.body)))
	for _, f := range c.check(k.request(t, sys), k.body, a) {
		t.Errorf("%s\n%s", what, f)
	}
	if a.StatusCode != status {
		t.Errorf("%s; want %d", what, status)
	}
	return a
}

// half sends all of a call but its last byte, and then, if it ends, nothing more.
func (c *contract) half(t *testing.T, sys *stand.System, status int, ends bool, k apiCall) {
	t.Helper()
	conn := dial(t, sys)
	req := k.request(t, sys)
	fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n", k.method, k.target, len(k.body))
	_ = req.Header.Write(conn)
	_, _ = conn.Write(append([]byte("\r\n"), k.body[:len(k.body)-1]...))
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
	c.answered(t, sys, status, k, answer{resp, body})
}

// Each operation of the document, such that it would be done, of user and a ticket.
type operations struct {
	get, head, picture, headPicture, put, post, remove, upload, commit apiCall

	reads, changes, own []apiCall // of these, and all
	static, options     []apiCall
}

func operationsOf(t *testing.T, user, ticket string) (o operations) {
	t.Helper()
	formType, body := form(t, cat)
	at := "/cat/" + user
	o = operations{
		get: apiCall{"GET", at, nil, nil}, head: apiCall{"HEAD", at, nil, nil}, picture: apiCall{"GET", at + "/picture", nil, nil}, headPicture: apiCall{"HEAD", at + "/picture", nil, nil},
		put: apiCall{"PUT", at, cat, []string{"Content-Type", "image/png"}}, post: apiCall{"POST", at, body, []string{"Content-Type", formType}}, remove: apiCall{"DELETE", at, nil, nil},
		upload: apiCall{"POST", fmt.Sprintf("%s/upload?size=%d", at, len(cat)), nil, nil}, commit: apiCall{"POST", at + "/upload/" + ticket + "/commit", nil, nil},
	}
	o.reads = []apiCall{o.get, o.head, o.picture, o.headPicture}
	o.changes = []apiCall{o.put, o.post, o.remove, o.upload, o.commit}
	o.own = slices.Concat(o.reads, o.changes)
	for _, path := range []string{"/service", "/about", "/", "/page/app.js", "/page/style.css", "/page/icon.svg", "/openapi.json", "/docs", "/docs/init.js", "/docs/swagger-ui.css"} {
		o.static = append(o.static, apiCall{"GET", path, nil, nil}, apiCall{"HEAD", path, nil, nil})
		o.options = append(o.options, apiCall{"OPTIONS", path, nil, nil})
	}
	for _, path := range []string{at, at + "/picture", at + "/upload", at + "/upload/" + ticket + "/commit"} {
		o.options = append(o.options, apiCall{"OPTIONS", path, nil, nil})
	}
	return o
}

// unprovoked are the documented answers that no test can have for the asking.
var unprovoked = map[string]string{
	`^(GET|HEAD) (/service|/about|/|/page/{file}|/openapi.json|/docs|/docs/{file}) 500|^POST /cat/{user}/upload 500`: "only a panic is one where storage is not asked",
}

func TestEveryAnswerIsAsTheDocumentSays(t *testing.T) {
	t.Parallel()
	needStand(t)
	c := readContract(t)
	t.Run("systems", func(t *testing.T) {
		for name, test := range map[string]func(*testing.T, *contract){
			"well": conformsWell, "storage": conformsWithoutStorage, "callers": conformsOfCallers, "limits": conformsToLimits, "load": conformsUnderLoad,
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				test(t, c)
			})
		}
	})
	all, excused := c.documented(), map[string]bool{}
	for _, answer := range all {
		if c.seen[answer] {
			continue
		}
		var found bool
		for pattern := range unprovoked {
			if regexp.MustCompile(pattern).MatchString(answer) {
				found, excused[pattern] = true, true
			}
		}
		if !found {
			t.Errorf("never seen: %s", answer)
		}
	}
	for pattern := range unprovoked {
		if !excused[pattern] {
			t.Errorf("all of %s was seen, and need not be excused", pattern)
		}
	}
	t.Logf("%d requests and their answers are as openapi.json says; of its %d answers, by operation, status and code, %d were seen", c.checked, len(all), len(c.seen))
}

// conformsWell asks for all that works, and for all that is refused for what it is.
func conformsWell(t *testing.T, c *contract) {
	sys := direct(t, stand.SystemOptions{
		FrontendEnv: map[string]string{"MAX_PICTURE_SIZE": "1MiB", "CORS_ORIGINS": "https://friend.example"}, SignerEnv: map[string]string{"MAX_PICTURE_SIZE": "1MiB"},
	})
	ask := func(status int, k apiCall) answer { t.Helper(); return c.ask(t, sys, status, k) }
	k := ticketFor(t, sys, "mia", int64(len(cat)))
	o := operationsOf(t, "mia", k.ID)

	// Nothing is there yet.
	for _, k := range append(slices.Clone(o.reads), o.remove, o.commit) {
		ask(404, k)
	}
	k.send(t, bytes.NewReader(cat), int64(len(cat)))

	etag := ask(200, o.put).Header.Get("ETag")
	for _, k := range []apiCall{o.get, o.head} {
		ask(304, k.with("If-None-Match", etag))
	}
	for _, k := range []apiCall{o.put, o.post, o.remove, o.commit} {
		ask(412, k.with("If-Match", `"0x0"`))
	}
	ask(200, apiCall{"POST", o.commit.target + "?content_md5=" + url.QueryEscape(md5Of(cat)), nil, nil})
	ask(200, o.post)
	ask(200, o.put.with("Content-MD5", md5Of(cat)))
	ask(200, apiCall{"GET", o.get.target + "?ttl=10m&download=a%20cat.png", nil, nil})
	for _, k := range o.reads {
		ask(map[bool]int{false: 200, true: 307}[strings.HasSuffix(k.target, "/picture")], k)
	}
	for _, k := range o.static {
		a := ask(200, k)
		if tag := a.Header.Get("ETag"); tag != "" {
			ask(304, k.with("If-None-Match", tag))
		}
		if k.method == http.MethodGet {
			ask(200, k.with("Accept-Encoding", "identity"))
		}
	}
	for _, k := range o.options {
		ask(204, k)
		ask(204, k.with("Origin", "https://friend.example", "Access-Control-Request-Method", "PUT"))
	}
	ask(200, o.get.with("Origin", "https://friend.example"))
	ask(201, o.upload)
	ask(201, apiCall{"POST", "/cat/mia/upload?size=100000000", nil, nil})

	// Refused by its header or its place.
	for _, k := range slices.Concat(o.own, o.static, o.options) {
		k.target += map[bool]string{true: "&x=", false: "?x="}[strings.Contains(k.target, "?")] + strings.Repeat("x", 4<<10)
		ask(414, k)
	}
	for _, k := range o.changes {
		ask(403, k.with("Origin", "https://evil.example", "Sec-Fetch-Site", "cross-site"))
	}
	for _, k := range operationsOf(t, "mia.", k.ID).own {
		ask(422, k)
	}
	for _, k := range o.reads {
		ask(422, apiCall{k.method, k.target + "?ttl=1", nil, nil})
	}
	for _, k := range []apiCall{o.put, o.post, o.remove, o.commit} {
		ask(422, k.with("If-Match", "cat"))
	}
	ask(422, apiCall{"POST", "/cat/mia/upload?size=x", nil, nil})
	ask(422, apiCall{"POST", "/cat/mia/upload?size=0", nil, nil})
	ask(413, apiCall{"POST", "/cat/mia/upload?size=5368709121", nil, nil})
	for _, path := range []string{"/nothing", "/cat/mia/x", "/docs/nothing.js", "/page/index.html"} {
		ask(404, apiCall{"GET", path, nil, nil})
		ask(404, apiCall{"HEAD", path, nil, nil})
	}
	ask(405, apiCall{"PATCH", "/cat/mia", nil, nil})
	ask(405, apiCall{"DELETE", "/docs", nil, nil})
	ask(307, apiCall{"GET", "/cat/mia/", nil, nil})

	// Refused for its body.
	large := append(bytes.Clone(cat), make([]byte, 2<<20)...)
	page, wrong := []byte("<!doctype html><script>alert(1)</script>"), md5Of(nil)
	for content, status := range map[*[]byte]int{&large: 413, &page: 415, {}: 422} {
		contentType, body := form(t, *content)
		ask(status, apiCall{"PUT", "/cat/mia", *content, nil})
		ask(status, apiCall{"POST", "/cat/mia", body, []string{"Content-Type", contentType}})
	}
	ask(400, o.put.with("Content-MD5", wrong))
	ask(400, o.post.with("Content-MD5", wrong))
	c.half(t, sys, 400, true, o.put)
	c.half(t, sys, 400, true, o.post)
	for body, status := range map[string]int{
		"--" + boundary + "\r\nno header\r\n\r\n":               400,
		field(`name="other"`, "x") + "--" + boundary + "--\r\n": 422,
		file(cat) + file(cat) + "--" + boundary + "--\r\n":      422,
	} {
		ask(status, apiCall{"POST", "/cat/mia", []byte(body), []string{"Content-Type", "multipart/form-data; boundary=" + boundary}})
	}
	for _, w := range []struct {
		content   []byte
		announced int64
		query     string
		status    int
	}{
		{page, int64(len(page)), "", 415},
		{cat, int64(len(cat)) + 1, "", 400},
		{cat, int64(len(cat)), "?content_md5=" + url.QueryEscape(wrong), 400},
		{append([]byte("\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x01\x00\x00\x00\x01\x00\x00"), make([]byte, 1000)...), 1024, "", 413},
	} {
		k := ticketFor(t, sys, "mia", w.announced)
		k.send(t, bytes.NewReader(w.content), int64(len(w.content)))
		ask(w.status, apiCall{"POST", "/cat/mia/upload/" + k.ID + "/commit" + w.query, nil, nil})
	}

	ask(204, o.remove)
	if err := sys.Signer.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, k := range append(slices.Clone(o.own), apiCall{"GET", "/about", nil, nil}, apiCall{"HEAD", "/about", nil, nil}) {
		ask(503, k)
	}
}

// conformsWithoutStorage has storage refuse, for what it is asked of one user each,
// and, for a ticket, which takes no more than a key, from the start.
func conformsWithoutStorage(t *testing.T, c *contract) {
	storage := newAccount(t)
	sys := direct(t, stand.SystemOptions{StorageURL: storage.URL})
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, f := range []struct {
		name   string
		status int
		fault  fault
	}{
		{"refused", 502, refuse(403, "AuthorizationPermissionMismatch")},
		{"throttled", 503, refuse(503, "ServerBusy", "Retry-After", "60")},
		{"strange", 500, refuse(404, "")},
		{"conflict", 409, refuse(409, "LeaseIdMissing")},
		{"broken", 503, refuse(500, "InternalError")},
	} {
		k := ticketFor(t, sys, f.name, int64(len(cat)))
		k.send(t, bytes.NewReader(cat), int64(len(cat)))
		o := operationsOf(t, f.name, k.ID)
		c.ask(t, sys, 200, o.put)
		storage.set(f.name, f.fault)
		calls := []apiCall{o.put, o.post, o.remove, o.commit}
		if f.status != 409 {
			calls = append(calls, o.reads...)
		}
		for _, k := range calls {
			wg.Go(func() { c.ask(t, sys, f.status, k) })
		}
	}
	keyless := newAccount(t)
	keyless.setAll(refuse(403, "AuthorizationPermissionMismatch"))
	sys = direct(t, stand.SystemOptions{StorageURL: keyless.URL, NotReady: true})
	c.ask(t, sys, 502, operationsOf(t, "mia", "").upload)
}

func conformsOfCallers(t *testing.T, c *contract) {
	p := startProvider(t, "0")
	mia, tom := p.token(t, "mia", catsAudience), p.token(t, "tom", catsAudience)
	opts := withCallers(p.issuer, nil)
	opts.FrontendEnv["OIDC_CLIENT_ID"] = "cats"
	sys := direct(t, opts)
	bearer := func(token string) []string { return []string{"Authorization", "Bearer " + token} }
	o := operationsOf(t, "mia", "1893456000-240512-ABCDEFGHIJKLMNOPQRSTUVWXYZ")
	c.ask(t, sys, 200, apiCall{"GET", "/about", nil, nil})
	c.ask(t, sys, 200, o.put.with(bearer(mia)...))
	for _, k := range o.own {
		c.ask(t, sys, 401, k)
		c.ask(t, sys, 401, k.with(bearer("mew.mew.mew")...))
		c.ask(t, sys, 403, k.with(bearer(tom)...))
	}
	c.ask(t, sys, 200, o.get.with(bearer(mia)...))
	limited := withCallers(p.issuer, nil)
	limited.SignerEnv["RATE_LIMIT"], limited.SignerEnv["RATE_BURST"] = "0.01", "1"
	limited.FrontendEnv["RATE_LIMIT"] = "1000"
	few := start(t, limited)
	c.ask(t, few, 404, o.get.with(bearer(mia)...))
	if a := c.ask(t, few, 429, o.get.with(bearer(mia)...)); len(a.Header.Values("RateLimit")) != 2 {
		t.Errorf("what is left to the caller is not told: %v", a.Header)
	}
	p.stop()
	opts.NotReady = true
	sys = direct(t, opts) // which knows no key
	var wg sync.WaitGroup
	for _, k := range o.own {
		wg.Go(func() { c.ask(t, sys, 503, k.with(bearer(mia)...)) })
	}
	wg.Wait()
}

func conformsToLimits(t *testing.T, c *contract) {
	sys := direct(t, stand.SystemOptions{FrontendEnv: map[string]string{"RATE_LIMIT": "0.01", "RATE_BURST": "1"}})
	o := operationsOf(t, "mia", "1893456000-240512-ABCDEFGHIJKLMNOPQRSTUVWXYZ")
	c.ask(t, sys, 200, o.static[0])
	for _, k := range slices.Concat(o.own, o.static, o.options) {
		c.ask(t, sys, 429, k)
	}
}

// conformsUnderLoad asks a system that has no place left, as storage does not answer.
func conformsUnderLoad(t *testing.T, c *contract) {
	storage := newAccount(t)
	sys := direct(t, stand.SystemOptions{StorageURL: storage.URL, FrontendEnv: map[string]string{"MAX_UPLOADS": "4", "STALL_TIMEOUT": "1s"}})
	o := operationsOf(t, "mia", "1893456000-240512-ABCDEFGHIJKLMNOPQRSTUVWXYZ")
	c.half(t, sys, 408, false, o.put)
	c.half(t, sys, 408, false, o.post)
	c.ask(t, sys, 200, o.put)
	const quick, all = 8, 14 // without a body, and in all, of requests at once, where 4 uploads are possible
	var held atomic.Int32    // more than all where one is tried again
	var done sync.WaitGroup
	release := make(chan struct{})
	storage.set("", func(w http.ResponseWriter, r *http.Request, healthy http.Handler) { healthy.ServeHTTP(w, r) })
	storage.setAll(func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
		held.Add(1)
		<-release
		healthy.ServeHTTP(w, r)
	})
	for i := range all {
		other := operationsOf(t, fmt.Sprint("u", i), "")
		done.Go(func() {
			if i < quick {
				c.ask(t, sys, 404, other.get)
			} else {
				c.ask(t, sys, 200, other.put)
			}
		})
	}
	eventually(t, func() error {
		if n := held.Load(); n < all {
			return fmt.Errorf("%d are with storage", n)
		}
		return nil
	})
	for _, k := range slices.Concat(o.own, o.static, o.options) {
		c.ask(t, sys, 503, k)
	}
	storage.setAll(nil)
	close(release)
	done.Wait()
}

// The examples are what people look at first.
func TestTheDocumentsExamplesAreAsItsSchemasSay(t *testing.T) {
	c := readContract(t)
	check := schema_validation.NewSchemaValidator()
	n := 0
	for name, response := range c.model.Components.Responses.FromOldest() {
		for mediaType, content := range response.Content.FromOldest() {
			valid := func(what string, value interface{ Decode(any) error }) {
				var v any
				if err := value.Decode(&v); err != nil {
					t.Error(err)
					return
				}
				if ok, faults := check.ValidateSchemaObject(content.Schema.Schema(), v); !ok {
					t.Errorf("%s %s of %s: %s", what, mediaType, name, told(faults))
				}
				n++
			}
			if content.Example != nil {
				valid("the example", content.Example)
			}
			for code, example := range content.Examples.FromOldest() {
				valid(code, example.Value)
			}
		}
	}
	if n < 30 {
		t.Errorf("%d examples were found", n)
	}
}
