package api

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

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

// Each operation of the document, such that it would be done, of user and a ticket.
type operations struct {
	get, head, picture, headPicture, put, post, remove, upload, commit harness.Call

	reads, changes, own []harness.Call // of these, and all
	static, options     []harness.Call
}

func operationsOf(t *testing.T, user, ticket string) (o operations) {
	t.Helper()
	formType, body := harness.Form(t, harness.Cat)
	at := "/cat/" + user
	o = operations{
		get: harness.Call{Method: "GET", Target: at, Body: nil, Header: nil}, head: harness.Call{Method: "HEAD", Target: at, Body: nil, Header: nil}, picture: harness.Call{Method: "GET", Target: at + "/picture", Body: nil, Header: nil}, headPicture: harness.Call{Method: "HEAD", Target: at + "/picture", Body: nil, Header: nil},
		put: harness.Call{Method: "PUT", Target: at, Body: harness.Cat, Header: []string{"Content-Type", "image/png"}}, post: harness.Call{Method: "POST", Target: at, Body: body, Header: []string{"Content-Type", formType}}, remove: harness.Call{Method: "DELETE", Target: at, Body: nil, Header: nil},
		upload: harness.Call{Method: "POST", Target: fmt.Sprintf("%s/upload?size=%d", at, len(harness.Cat)), Body: nil, Header: nil}, commit: harness.Call{Method: "POST", Target: at + "/upload/" + ticket + "/commit", Body: nil, Header: nil},
	}
	o.reads = []harness.Call{o.get, o.head, o.picture, o.headPicture}
	o.changes = []harness.Call{o.put, o.post, o.remove, o.upload, o.commit}
	o.own = slices.Concat(o.reads, o.changes)
	for _, path := range []string{"/service", "/about", "/", "/page/app.js", "/page/style.css", "/page/icon.svg", "/openapi.json", "/docs", "/docs/init.js", "/docs/swagger-ui.css"} {
		o.static = append(o.static, harness.Call{Method: "GET", Target: path, Body: nil, Header: nil}, harness.Call{Method: "HEAD", Target: path, Body: nil, Header: nil})
		o.options = append(o.options, harness.Call{Method: "OPTIONS", Target: path, Body: nil, Header: nil})
	}
	for _, path := range []string{at, at + "/picture", at + "/upload", at + "/upload/" + ticket + "/commit"} {
		o.options = append(o.options, harness.Call{Method: "OPTIONS", Target: path, Body: nil, Header: nil})
	}
	return o
}

// unprovoked are the documented answers that no test can have for the asking.
var unprovoked = map[string]string{
	`^(GET|HEAD) (/service|/about|/|/page/{file}|/openapi.json|/docs|/docs/{file}) 500|^POST /cat/{user}/upload 500`: "only a panic is one where storage is not asked",
}

func TestEveryAnswerIsAsTheDocumentSays(t *testing.T) {
	t.Parallel()
	harness.NeedStack(t)
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
	sys := harness.StartDirect(t, stack.SystemOptions{
		FrontendEnv: map[string]string{"MAX_PICTURE_SIZE": "1MiB", "CORS_ORIGINS": "https://friend.example"}, SignerEnv: map[string]string{"MAX_PICTURE_SIZE": "1MiB"},
	})
	ask := func(status int, k harness.Call) harness.Response { t.Helper(); return c.ask(t, sys, status, k) }
	k := harness.NewUploadSession(t, sys, "mia", int64(len(harness.Cat)))
	o := operationsOf(t, "mia", k.ID)

	// Nothing is there yet.
	for _, k := range append(slices.Clone(o.reads), o.remove, o.commit) {
		ask(404, k)
	}
	k.Send(t, bytes.NewReader(harness.Cat), int64(len(harness.Cat)))

	etag := ask(200, o.put).Header.Get("ETag")
	for _, k := range []harness.Call{o.get, o.head} {
		ask(304, k.With("If-None-Match", etag))
	}
	for _, k := range []harness.Call{o.put, o.post, o.remove, o.commit} {
		ask(412, k.With("If-Match", `"0x0"`))
	}
	ask(200, harness.Call{Method: "POST", Target: o.commit.Target + "?content_md5=" + url.QueryEscape(harness.MD5(harness.Cat)), Body: nil, Header: nil})
	ask(200, o.post)
	ask(200, o.put.With("Content-MD5", harness.MD5(harness.Cat)))
	ask(200, harness.Call{Method: "GET", Target: o.get.Target + "?ttl=10m&download=a%20cat.png", Body: nil, Header: nil})
	for _, k := range o.reads {
		ask(map[bool]int{false: 200, true: 307}[strings.HasSuffix(k.Target, "/picture")], k)
	}
	for _, k := range o.static {
		a := ask(200, k)
		if tag := a.Header.Get("ETag"); tag != "" {
			ask(304, k.With("If-None-Match", tag))
		}
		if k.Method == http.MethodGet {
			ask(200, k.With("Accept-Encoding", "identity"))
		}
	}
	for _, k := range o.options {
		ask(204, k)
		ask(204, k.With("Origin", "https://friend.example", "Access-Control-Request-Method", "PUT"))
	}
	ask(200, o.get.With("Origin", "https://friend.example"))
	ask(201, o.upload)
	ask(201, harness.Call{Method: "POST", Target: "/cat/mia/upload?size=100000000", Body: nil, Header: nil})

	// Refused by its header or its place.
	for _, k := range slices.Concat(o.own, o.static, o.options) {
		ask(421, k.With("Host", "evil.example"))
		k.Target += map[bool]string{true: "&x=", false: "?x="}[strings.Contains(k.Target, "?")] + strings.Repeat("x", 4<<10)
		ask(414, k)
	}
	for _, k := range o.changes {
		ask(403, k.With("Origin", "https://evil.example", "Sec-Fetch-Site", "cross-site"))
	}
	for _, k := range operationsOf(t, "mia.", k.ID).own {
		ask(422, k)
	}
	for _, k := range o.reads {
		ask(422, harness.Call{Method: k.Method, Target: k.Target + "?ttl=1", Body: nil, Header: nil})
	}
	for _, k := range []harness.Call{o.put, o.post, o.remove, o.commit} {
		ask(422, k.With("If-Match", "cat"))
	}
	ask(422, harness.Call{Method: "POST", Target: "/cat/mia/upload?size=x", Body: nil, Header: nil})
	ask(422, harness.Call{Method: "POST", Target: "/cat/mia/upload?size=0", Body: nil, Header: nil})
	ask(413, harness.Call{Method: "POST", Target: "/cat/mia/upload?size=5368709121", Body: nil, Header: nil})
	for _, path := range []string{"/nothing", "/cat/mia/x", "/docs/nothing.js", "/page/index.html"} {
		ask(404, harness.Call{Method: "GET", Target: path, Body: nil, Header: nil})
		ask(404, harness.Call{Method: "HEAD", Target: path, Body: nil, Header: nil})
	}
	ask(405, harness.Call{Method: "PATCH", Target: "/cat/mia", Body: nil, Header: nil})
	ask(405, harness.Call{Method: "DELETE", Target: "/docs", Body: nil, Header: nil})
	ask(307, harness.Call{Method: "GET", Target: "/cat/mia/", Body: nil, Header: nil})
	ask(421, harness.Call{Method: "GET", Target: "/nothing", Body: nil, Header: []string{"Host", "evil.example"}})

	// Refused for its body.
	large := append(bytes.Clone(harness.Cat), make([]byte, 2<<20)...)
	page, wrong := []byte("<!doctype html><script>alert(1)</script>"), harness.MD5(nil)
	for content, status := range map[*[]byte]int{&large: 413, &page: 415, {}: 422} {
		contentType, body := harness.Form(t, *content)
		ask(status, harness.Call{Method: "PUT", Target: "/cat/mia", Body: *content, Header: nil})
		ask(status, harness.Call{Method: "POST", Target: "/cat/mia", Body: body, Header: []string{"Content-Type", contentType}})
	}
	ask(400, o.put.With("Content-MD5", wrong))
	ask(400, o.post.With("Content-MD5", wrong))
	for _, k := range []harness.Call{o.put, o.post} {
		ask(400, k.With("Content-Range", "bytes 0-9/100"))
		ask(415, k.With("Content-Encoding", "gzip"))
	}
	c.half(t, sys, 400, true, o.put)
	c.half(t, sys, 400, true, o.post)
	for body, status := range map[string]int{
		"--" + harness.Boundary + "\r\nno header\r\n\r\n":                                                  400,
		harness.FormField(`name="other"`, "x") + "--" + harness.Boundary + "--\r\n":                        422,
		harness.FormFile(harness.Cat) + harness.FormFile(harness.Cat) + "--" + harness.Boundary + "--\r\n": 422,
		harness.FormFile(harness.Cat) + harness.LastBoundary + strings.Repeat("x", 96<<10):                 422,
	} {
		ask(status, harness.Call{Method: "POST", Target: "/cat/mia", Body: []byte(body), Header: []string{"Content-Type", "multipart/form-data; boundary=" + harness.Boundary}})
	}
	for _, w := range []struct {
		content   []byte
		announced int64
		query     string
		status    int
	}{
		{page, int64(len(page)), "", 415},
		{harness.Cat, int64(len(harness.Cat)) + 1, "", 400},
		{harness.Cat, int64(len(harness.Cat)), "?content_md5=" + url.QueryEscape(wrong), 400},
		{append(harness.PNG(1<<16, 1<<16), make([]byte, 1000)...), 1033, "", 413},
	} {
		k := harness.NewUploadSession(t, sys, "mia", w.announced)
		k.Send(t, bytes.NewReader(w.content), int64(len(w.content)))
		ask(w.status, harness.Call{Method: "POST", Target: "/cat/mia/upload/" + k.ID + "/commit" + w.query, Body: nil, Header: nil})
	}

	ask(204, o.remove)
	if err := sys.Signer.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, k := range append(slices.Clone(o.own), harness.Call{Method: "GET", Target: "/about", Body: nil, Header: nil}, harness.Call{Method: "HEAD", Target: "/about", Body: nil, Header: nil}) {
		ask(503, k)
	}
}

// conformsWithoutStorage has storage refuse, for what it is asked of one user each,
// and, for a ticket, which takes no more than a key, from the start.
func conformsWithoutStorage(t *testing.T, c *contract) {
	storage := harness.NewStorageProxy(t)
	sys := harness.StartDirect(t, stack.SystemOptions{StorageURL: storage.URL})
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, f := range []struct {
		name   string
		status int
		fault  harness.Fault
	}{
		{"refused", 502, harness.Reject(403, "AuthorizationPermissionMismatch")},
		{"throttled", 503, harness.Reject(503, "ServerBusy", "Retry-After", "60")},
		{"strange", 500, harness.Reject(404, "")},
		{"conflict", 409, harness.Reject(400, "InvalidBlockList")},
		{"archived", 409, harness.Reject(409, "BlobArchived")},
		{"immutable", 409, harness.Reject(409, "BlobImmutableDueToPolicy")},
		{"leased", 409, harness.Reject(412, "LeaseIdMissing")},
		{"rejected", 409, harness.Reject(409, "InvalidBlobType")},
		{"broken", 503, harness.Reject(500, "InternalError")},
	} {
		k := harness.NewUploadSession(t, sys, f.name, int64(len(harness.Cat)))
		k.Send(t, bytes.NewReader(harness.Cat), int64(len(harness.Cat)))
		o := operationsOf(t, f.name, k.ID)
		c.ask(t, sys, 200, o.put)
		storage.Set(f.name, f.fault)
		calls := []harness.Call{o.put, o.post, o.remove, o.commit}
		if f.status != 409 {
			calls = append(calls, o.reads...)
		}
		for _, k := range calls {
			wg.Go(func() { c.ask(t, sys, f.status, k) })
		}
	}
	storage.Set("damaged", harness.CRC64("AAAAAAAAAAA="))
	c.ask(t, sys, 502, operationsOf(t, "damaged", "").put)
	keyless := harness.NewStorageProxy(t)
	keyless.SetAll(harness.Reject(403, "AuthorizationPermissionMismatch"))
	sys = harness.StartDirect(t, stack.SystemOptions{StorageURL: keyless.URL, NotReady: true})
	c.ask(t, sys, 502, operationsOf(t, "mia", "").upload)
}

func conformsOfCallers(t *testing.T, c *contract) {
	p := harness.StartProvider(t, "0")
	mia, tom := p.Token(t, "mia", harness.Audience), p.Token(t, "tom", harness.Audience)
	opts := harness.WithAuthentication(p.Issuer, nil)
	opts.FrontendEnv["OIDC_CLIENT_ID"] = "cats"
	sys := harness.StartDirect(t, opts)
	bearer := func(token string) []string { return []string{"Authorization", "Bearer " + token} }
	o := operationsOf(t, "mia", "1893456000-240512-ABCDEFGHIJKLMNOPQRSTUVWXYZ")
	c.ask(t, sys, 200, harness.Call{Method: "GET", Target: "/about", Body: nil, Header: nil})
	c.ask(t, sys, 200, o.put.With(bearer(mia)...))
	for _, k := range o.own {
		c.ask(t, sys, 401, k)
		c.ask(t, sys, 401, k.With(bearer("mew.mew.mew")...))
		c.ask(t, sys, 403, k.With(bearer(tom)...))
	}
	c.ask(t, sys, 200, o.get.With(bearer(mia)...))
	limited := harness.WithAuthentication(p.Issuer, nil)
	limited.SignerEnv["RATE_LIMIT"], limited.SignerEnv["RATE_BURST"] = "0.01", "1"
	limited.FrontendEnv["RATE_LIMIT"] = "1000"
	few := harness.Start(t, limited)
	c.ask(t, few, 404, o.get.With(bearer(mia)...))
	if a := c.ask(t, few, 429, o.get.With(bearer(mia)...)); len(a.Header.Values("RateLimit")) != 2 {
		t.Errorf("what is left to the caller is not told: %v", a.Header)
	}
	delete(opts.SignerEnv, "OIDC_ISSUER")
	delete(opts.SignerEnv, "OIDC_AUDIENCE")
	split := harness.StartDiffering(t, opts)
	for _, k := range o.own {
		c.ask(t, split, 503, k.With(bearer(mia)...))
	}
	p.Stop()
	opts = harness.WithAuthentication(p.Issuer, nil)
	opts.NotReady = true
	sys = harness.StartDirect(t, opts) // which knows no key
	var wg sync.WaitGroup
	for _, k := range o.own {
		wg.Go(func() { c.ask(t, sys, 503, k.With(bearer(mia)...)) })
	}
	wg.Wait()
}

func conformsToLimits(t *testing.T, c *contract) {
	sys := harness.StartDirect(t, stack.SystemOptions{FrontendEnv: map[string]string{"RATE_LIMIT": "0.01", "RATE_BURST": "1"}})
	o := operationsOf(t, "mia", "1893456000-240512-ABCDEFGHIJKLMNOPQRSTUVWXYZ")
	c.ask(t, sys, 200, o.static[0])
	for _, k := range slices.Concat(o.own, o.static, o.options) {
		c.ask(t, sys, 429, k)
	}
}

// conformsUnderLoad asks a system that has no place left, as storage does not answer.
func conformsUnderLoad(t *testing.T, c *contract) {
	storage := harness.NewStorageProxy(t)
	sys := harness.StartDirect(t, stack.SystemOptions{StorageURL: storage.URL, FrontendEnv: map[string]string{"MAX_UPLOADS": "4", "STALL_TIMEOUT": "1s"}})
	o := operationsOf(t, "mia", "1893456000-240512-ABCDEFGHIJKLMNOPQRSTUVWXYZ")
	c.half(t, sys, 408, false, o.put)
	c.half(t, sys, 408, false, o.post)
	c.ask(t, sys, 200, o.put)
	const quick, all = 12, 16 // requests without a body, and all, that are possible with 4 uploads
	var held atomic.Int32     // more than all where one is tried again
	var done sync.WaitGroup
	release := make(chan struct{})
	storage.Set("", func(w http.ResponseWriter, r *http.Request, healthy http.Handler) { healthy.ServeHTTP(w, r) })
	storage.SetAll(func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
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
	harness.Eventually(t, func() error {
		if n := held.Load(); n < all {
			return fmt.Errorf("%d are with storage", n)
		}
		return nil
	})
	for _, k := range slices.Concat(o.own, o.static, o.options) {
		c.ask(t, sys, 503, k)
	}
	storage.SetAll(nil)
	close(release)
	done.Wait()
}
