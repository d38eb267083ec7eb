package e2e

import (
	"bytes"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/pb33f/libopenapi-validator/schema_validation"

	"cats.example/local/stack"
)

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
	sys := direct(t, stack.SystemOptions{
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
		ask(421, k.with("Host", "evil.example"))
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
	ask(421, apiCall{"GET", "/nothing", nil, []string{"Host", "evil.example"}})

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
	for _, k := range []apiCall{o.put, o.post} {
		ask(400, k.with("Content-Range", "bytes 0-9/100"))
		ask(415, k.with("Content-Encoding", "gzip"))
	}
	c.half(t, sys, 400, true, o.put)
	c.half(t, sys, 400, true, o.post)
	for body, status := range map[string]int{
		"--" + boundary + "\r\nno header\r\n\r\n":               400,
		field(`name="other"`, "x") + "--" + boundary + "--\r\n": 422,
		file(cat) + file(cat) + "--" + boundary + "--\r\n":      422,
		file(cat) + lastBoundary + strings.Repeat("x", 96<<10):  422,
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
		{append(pngOf(1<<16, 1<<16), make([]byte, 1000)...), 1033, "", 413},
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
	sys := direct(t, stack.SystemOptions{StorageURL: storage.URL})
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
		{"conflict", 409, refuse(400, "InvalidBlockList")},
		{"archived", 409, refuse(409, "BlobArchived")},
		{"immutable", 409, refuse(409, "BlobImmutableDueToPolicy")},
		{"leased", 409, refuse(412, "LeaseIdMissing")},
		{"rejected", 409, refuse(409, "InvalidBlobType")},
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
	storage.set("damaged", crc64("AAAAAAAAAAA="))
	c.ask(t, sys, 502, operationsOf(t, "damaged", "").put)
	keyless := newAccount(t)
	keyless.setAll(refuse(403, "AuthorizationPermissionMismatch"))
	sys = direct(t, stack.SystemOptions{StorageURL: keyless.URL, NotReady: true})
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
	delete(opts.SignerEnv, "OIDC_ISSUER")
	delete(opts.SignerEnv, "OIDC_AUDIENCE")
	split := startDiffering(t, opts)
	for _, k := range o.own {
		c.ask(t, split, 503, k.with(bearer(mia)...))
	}
	p.stop()
	opts = withCallers(p.issuer, nil)
	opts.NotReady = true
	sys = direct(t, opts) // which knows no key
	var wg sync.WaitGroup
	for _, k := range o.own {
		wg.Go(func() { c.ask(t, sys, 503, k.with(bearer(mia)...)) })
	}
	wg.Wait()
}

func conformsToLimits(t *testing.T, c *contract) {
	sys := direct(t, stack.SystemOptions{FrontendEnv: map[string]string{"RATE_LIMIT": "0.01", "RATE_BURST": "1"}})
	o := operationsOf(t, "mia", "1893456000-240512-ABCDEFGHIJKLMNOPQRSTUVWXYZ")
	c.ask(t, sys, 200, o.static[0])
	for _, k := range slices.Concat(o.own, o.static, o.options) {
		c.ask(t, sys, 429, k)
	}
}

// conformsUnderLoad asks a system that has no place left, as storage does not answer.
func conformsUnderLoad(t *testing.T, c *contract) {
	storage := newAccount(t)
	sys := direct(t, stack.SystemOptions{StorageURL: storage.URL, FrontendEnv: map[string]string{"MAX_UPLOADS": "4", "STALL_TIMEOUT": "1s"}})
	o := operationsOf(t, "mia", "1893456000-240512-ABCDEFGHIJKLMNOPQRSTUVWXYZ")
	c.half(t, sys, 408, false, o.put)
	c.half(t, sys, 408, false, o.post)
	c.ask(t, sys, 200, o.put)
	const quick, all = 12, 16 // requests without a body, and all, that are possible with 4 uploads
	var held atomic.Int32     // more than all where one is tried again
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
