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

// operations are calls of each operation of the document, for the picture of one user.
type operations struct {
	get, put, post, remove, upload, commit harness.Call

	reads, writes, conditional, own []harness.Call // own are all operations of a user
	static, options                 []harness.Call
}

// unusedID is a well-formed ID of an upload that does not exist.
const unusedID = "1893456000-240512-ABCDEFGHIJKLMNOPQRSTUVWXYZ"

func call(method, target string) harness.Call { return harness.Call{Method: method, Target: target} }

func operationsOf(t *testing.T, user, uploadID string) (o operations) {
	t.Helper()
	formType, form := harness.Form(t, harness.Cat)
	at := "/cat/" + user
	o.get, o.remove = call("GET", at), call("DELETE", at)
	o.put = harness.Call{Method: "PUT", Target: at, Body: harness.Cat, Header: []string{"Content-Type", "image/png"}}
	o.post = harness.Call{Method: "POST", Target: at, Body: form, Header: []string{"Content-Type", formType}}
	o.upload, o.commit = call("POST", fmt.Sprintf("%s/upload?size=%d", at, len(harness.Cat))), call("POST", at+"/upload/"+uploadID+"/commit")
	o.reads = []harness.Call{o.get, call("HEAD", at), call("GET", at+"/picture"), call("HEAD", at+"/picture")}
	o.conditional = []harness.Call{o.put, o.post, o.remove, o.commit}
	o.writes = append(slices.Clone(o.conditional), o.upload)
	o.own = slices.Concat(o.reads, o.writes)
	for path := range strings.FieldsSeq("/service /about / /page/app.js /page/style.css /page/icon.svg /openapi.json " +
		"/docs /docs/init.js /docs/swagger-ui.css") {
		o.static = append(o.static, call("GET", path), call("HEAD", path))
		o.options = append(o.options, call("OPTIONS", path))
	}
	for _, path := range []string{at, at + "/picture", at + "/upload", at + "/upload/" + uploadID + "/commit"} {
		o.options = append(o.options, call("OPTIONS", path))
	}
	return o
}

// with returns calls with more headers.
func with(calls []harness.Call, header ...string) (all []harness.Call) {
	for _, k := range calls {
		all = append(all, k.With(header...))
	}
	return all
}

// unseen matches the documented responses that only a panic can cause.
var unseen = regexp.MustCompile(`^(GET|HEAD) (/service|/about|/|/page/{file}|/openapi.json|/docs|/docs/{file}) 500|^POST /cat/{user}/upload 500`)

func TestResponsesConformToOpenAPI(t *testing.T) {
	t.Parallel()
	harness.NeedStack(t)
	c := readContract(t)
	t.Run("systems", func(t *testing.T) {
		for name, test := range map[string]func(*testing.T, *contract){
			"healthy": conformHealthy, "without the signer": conformWithoutSigner, "storage": conformWithoutStorage,
			"authentication": conformWithAuthentication, "rate limit": conformOverRateLimit, "overload": conformUnderLoad,
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				test(t, c)
			})
		}
	})
	all := c.documented()
	for _, response := range all {
		if excused := unseen.MatchString(response); c.seen[response] == excused {
			t.Errorf("%s: seen %t; want %t", response, c.seen[response], !excused)
		}
	}
	t.Logf("of %d documented responses, by operation, status and code, %d were seen", len(all), len(c.seen))
}

// conformHealthy makes calls that succeed, and calls that a healthy system rejects.
func conformHealthy(t *testing.T, c *contract) {
	env := map[string]string{"MAX_PICTURE_SIZE": "1MiB", "LINK_MAX_TTL": "2h"}
	sys := harness.StartDirect(t, stack.SystemOptions{
		FrontendEnv: harness.Merge(env, map[string]string{"CORS_ORIGINS": "https://friend.example"}), SignerEnv: env,
	})
	send := func(status int, calls ...harness.Call) harness.Response {
		t.Helper()
		return c.send(t, sys, status, calls...)
	}
	k := harness.NewUploadSession(t, sys, "mia", int64(len(harness.Cat)))
	o := operationsOf(t, "mia", k.ID)
	send(404, o.reads...)
	send(404, o.remove, o.commit)
	k.Send(t, bytes.NewReader(harness.Cat), int64(len(harness.Cat)))

	etag := send(200, o.put).Header.Get("ETag")
	send(304, with(o.reads[:2], "If-None-Match", etag)...)
	send(412, with(o.conditional, "If-Match", `"0x0"`)...)
	right := harness.MD5(harness.Cat)
	send(200, call("POST", o.commit.Target+"?content_md5="+url.QueryEscape(right)), o.post, o.put.With("Content-MD5", right))
	send(200, call("GET", o.get.Target+"?ttl=2h&download=a%20cat.png"))
	send(200, o.reads[:2]...)
	send(307, o.reads[2:]...)
	for _, k := range o.static {
		if tag := send(200, k).Header.Get("ETag"); tag != "" {
			send(304, k.With("If-None-Match", tag))
		}
		if k.Method == http.MethodGet {
			send(200, k.With("Accept-Encoding", "identity"))
		}
	}
	send(204, o.options...)
	send(204, with(o.options, "Origin", "https://friend.example", "Access-Control-Request-Method", "PUT")...)
	send(200, o.get.With("Origin", "https://friend.example"))
	send(201, o.upload, call("POST", "/cat/mia/upload?size=100000000"))

	for _, k := range slices.Concat(o.own, o.static, o.options) {
		send(421, k.With("Host", "evil.example"))
		k.Target += map[bool]string{true: "&x=", false: "?x="}[strings.Contains(k.Target, "?")] + strings.Repeat("x", 4<<10)
		send(414, k)
	}
	send(403, with(o.writes, "Origin", "https://evil.example", "Sec-Fetch-Site", "cross-site")...)
	for _, name := range []string{"mia.", "..%2Fmia", "a%5Cb", "%00", "%2e%2e", "%ff", "%EE%80%80", strings.Repeat("x", 129)} {
		send(422, operationsOf(t, name, k.ID).own...)
	}
	for _, k := range o.reads {
		send(422, call(k.Method, k.Target+"?ttl=1"), call(k.Method, k.Target+"?ttl=2h1s"))
	}
	send(422, with(o.conditional, "If-Match", "cat")...)
	send(422, call("POST", "/cat/mia/upload?size=x"), call("POST", "/cat/mia/upload?size=0"))
	send(413, call("POST", "/cat/mia/upload?size=5368709121"))
	for _, path := range []string{"/nothing", "/cat/mia/x", "/docs/nothing.js", "/page/index.html"} {
		send(404, call("GET", path), call("HEAD", path))
	}
	send(405, call("PATCH", "/cat/mia"), call("DELETE", "/docs"))
	send(307, call("GET", "/cat/mia/"))
	send(421, call("GET", "/nothing").With("Host", "evil.example"))

	page, wrong := []byte(page), harness.MD5(nil)
	for _, w := range []struct {
		content []byte
		status  int
	}{{harness.Random(1<<20, 1), 200}, {harness.Random(1<<20+1, 1), 413}, {page, 415}, {nil, 422}} {
		contentType, form := harness.Form(t, w.content)
		send(w.status, harness.Call{Method: "PUT", Target: "/cat/mia", Body: w.content})
		send(w.status, harness.Call{Method: "POST", Target: "/cat/mia", Body: form, Header: []string{"Content-Type", contentType}})
	}
	uploads := []harness.Call{o.put, o.post}
	send(400, with(uploads, "Content-MD5", wrong)...)
	send(400, with(uploads, "Content-Range", "bytes 0-9/100")...)
	send(415, with(uploads, "Content-Encoding", "gzip")...)
	c.sendHalf(t, sys, 400, true, uploads...)
	for form, status := range map[string]int{
		"--" + harness.Boundary + "\r\nno header\r\n\r\n":                                    400,
		harness.FormField(`name="other"`, "x") + harness.LastBoundary:                        422,
		harness.FormFile(harness.Cat) + harness.FormFile(harness.Cat) + harness.LastBoundary: 422,
		harness.FormFile(harness.Cat) + harness.LastBoundary + strings.Repeat("x", 96<<10):   422,
	} {
		send(status, harness.Call{Method: "POST", Target: "/cat/mia", Body: []byte(form), Header: []string{"Content-Type", harness.FormType}})
	}
	for _, w := range []struct {
		content   []byte
		announced int
		query     string
		status    int
	}{
		{page, len(page), "", 415},
		{harness.Cat, len(harness.Cat) + 1, "", 400},
		{harness.Cat, len(harness.Cat), "?content_md5=" + url.QueryEscape(wrong), 400},
		{append(harness.PNG(1<<16, 1<<16), make([]byte, 1000)...), 1033, "", 413},
	} {
		k := harness.NewUploadSession(t, sys, "mia", int64(w.announced))
		k.Send(t, bytes.NewReader(w.content), int64(len(w.content)))
		send(w.status, call("POST", "/cat/mia/upload/"+k.ID+"/commit"+w.query))
	}
	send(204, o.remove)
}

func conformWithoutSigner(t *testing.T, c *contract) {
	sys := harness.Start(t, stack.SystemOptions{})
	c.send(t, sys, 413, call("POST", "/cat/mia/upload?size=1")) // direct uploads are off by default
	if a := c.send(t, sys, 200, call("GET", "/about")); a.Field(t, "max_direct_size") != 0.0 || a.Field(t, "max_picture_size") != float64(32<<20) {
		t.Errorf("/about is %s", a.Body)
	}
	if err := sys.Signer.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.send(t, sys, 503, append(operationsOf(t, "mia", unusedID).own, call("GET", "/about"), call("HEAD", "/about"))...)
}

// conformWithoutStorage makes storage reject requests, in another way for each user.
func conformWithoutStorage(t *testing.T, c *contract) {
	storage := harness.NewStorageProxy(t)
	sys := harness.StartDirect(t, stack.SystemOptions{StorageURL: storage.URL})
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, f := range []struct {
		user   string
		status int
		fault  harness.Fault
	}{
		{"refused", 502, harness.Reject(403, "AuthorizationPermissionMismatch")},
		{"throttled", 503, harness.Reject(503, "ServerBusy", "Retry-After", "60")},
		{"strange", 500, harness.Reject(404, "")},
		{"invalid", 422, harness.Reject(400, "InvalidUri")},
		{"conflict", 409, harness.Reject(400, "InvalidBlockList")},
		{"archived", 409, harness.Reject(409, "BlobArchived")},
		{"immutable", 409, harness.Reject(409, "BlobImmutableDueToPolicy")},
		{"leased", 409, harness.Reject(412, "LeaseIdMissing")},
		{"rejected", 409, harness.Reject(409, "InvalidBlobType")},
		{"broken", 503, harness.Reject(500, "InternalError")},
	} {
		k := harness.NewUploadSession(t, sys, f.user, int64(len(harness.Cat)))
		k.Send(t, bytes.NewReader(harness.Cat), int64(len(harness.Cat)))
		o := operationsOf(t, f.user, k.ID)
		c.send(t, sys, 200, o.put)
		storage.Set(f.user, f.fault)
		calls := o.conditional
		if f.status != 409 {
			calls = append(calls, o.reads...)
		}
		for _, k := range calls {
			wg.Go(func() { c.send(t, sys, f.status, k) })
		}
	}
	storage.Set("damaged", harness.CRC64("AAAAAAAAAAA="))
	c.send(t, sys, 502, operationsOf(t, "damaged", "").put)
	keyless := harness.NewStorageProxy(t)
	keyless.SetAll(harness.Reject(403, "AuthorizationPermissionMismatch"))
	sys = harness.StartDirect(t, stack.SystemOptions{StorageURL: keyless.URL, NotReady: true})
	c.send(t, sys, 502, operationsOf(t, "mia", "").upload)
}

func conformWithAuthentication(t *testing.T, c *contract) {
	p := harness.StartProvider(t, "0")
	mia, tom := "Bearer "+p.Token(t, "mia", harness.Audience), "Bearer "+p.Token(t, "tom", harness.Audience)
	opts := harness.WithAuthentication(p.Issuer, nil)
	opts.FrontendEnv["OIDC_CLIENT_ID"] = "cats"
	sys := harness.StartDirect(t, opts)
	o := operationsOf(t, "mia", unusedID)
	c.send(t, sys, 200, call("GET", "/about"), o.put.With("Authorization", mia))
	c.send(t, sys, 401, o.own...)
	c.send(t, sys, 401, with(o.own, "Authorization", "Bearer mew.mew.mew")...)
	c.send(t, sys, 403, with(o.own, "Authorization", tom)...)
	c.send(t, sys, 200, o.get.With("Authorization", mia))

	limited := harness.WithAuthentication(p.Issuer, nil)
	limited.SignerEnv["RATE_LIMIT"], limited.SignerEnv["RATE_BURST"] = "0.01", "1"
	limited.FrontendEnv["RATE_LIMIT"] = "1000"
	few := harness.Start(t, limited)
	c.send(t, few, 404, o.get.With("Authorization", mia))
	if a := c.send(t, few, 429, o.get.With("Authorization", mia)); len(a.Header.Values("RateLimit")) != 2 {
		t.Errorf("the limits of client and caller are not both in the header: %v", a.Header)
	}
	delete(opts.SignerEnv, "OIDC_ISSUER")
	delete(opts.SignerEnv, "OIDC_AUDIENCE")
	c.send(t, harness.StartDiffering(t, opts), 503, with(o.own, "Authorization", mia)...)
	p.Stop()
	opts = harness.WithAuthentication(p.Issuer, nil)
	opts.NotReady = true
	withoutKeys := harness.StartDirect(t, opts)
	var wg sync.WaitGroup
	for _, k := range with(o.own, "Authorization", mia) {
		wg.Go(func() { c.send(t, withoutKeys, 503, k) })
	}
	wg.Wait()
}

func conformOverRateLimit(t *testing.T, c *contract) {
	sys := harness.Start(t, stack.SystemOptions{FrontendEnv: map[string]string{"RATE_LIMIT": "0.01", "RATE_BURST": "1"}})
	o := operationsOf(t, "mia", unusedID)
	c.send(t, sys, 200, o.static[0])
	c.send(t, sys, 429, slices.Concat(o.own, o.static, o.options)...)
}

// conformUnderLoad makes calls while all slots are taken by requests that wait for storage.
func conformUnderLoad(t *testing.T, c *contract) {
	storage := harness.NewStorageProxy(t)
	sys := harness.StartDirect(t, stack.SystemOptions{StorageURL: storage.URL, FrontendEnv: map[string]string{"MAX_UPLOADS": "4", "STALL_TIMEOUT": "1s"}})
	o := operationsOf(t, "mia", unusedID)
	c.sendHalf(t, sys, 408, false, o.put, o.post)
	c.send(t, sys, 200, o.put)
	const reads, slots = 12, 16 // with four uploads
	var held atomic.Int32       // more than slots if one is retried
	var done sync.WaitGroup
	release := make(chan struct{})
	storage.Set("", func(w http.ResponseWriter, r *http.Request, healthy http.Handler) { healthy.ServeHTTP(w, r) })
	storage.SetAll(func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
		held.Add(1)
		<-release
		healthy.ServeHTTP(w, r)
	})
	for i := range slots {
		other := operationsOf(t, fmt.Sprint("u", i), "")
		done.Go(func() {
			if i < reads {
				c.send(t, sys, 404, other.get)
			} else {
				c.send(t, sys, 200, other.put)
			}
		})
	}
	harness.Eventually(t, func() error {
		if n := held.Load(); n < slots {
			return fmt.Errorf("%d requests wait for storage", n)
		}
		return nil
	})
	c.send(t, sys, 503, slices.Concat(o.own, o.static, o.options)...)
	storage.SetAll(nil)
	close(release)
	done.Wait()
}
