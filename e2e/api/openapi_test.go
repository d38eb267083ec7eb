package api

import (
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

// unusedID is a well-formed ID of an upload that does not exist.
const unusedID = "1893456000-240512-ABCDEFGHIJKLMNOPQRSTUVWXYZ"

func call(method, target string) harness.Call { return harness.Call{Method: method, Target: target} }

// operations are calls of each operation of the document, for the picture of one user.
type operations map[string][]harness.Call

func operationsOf(t *testing.T, user, uploadID string) operations {
	t.Helper()
	formType, form := harness.Form(t, harness.Cat)
	at := "/cat/" + user
	o := operations{
		"get": {call("GET", at)}, "remove": {call("DELETE", at)},
		"put":       {{Method: "PUT", Target: at, Body: harness.Cat, Header: []string{"Content-Type", "image/png"}}},
		"post":      {{Method: "POST", Target: at, Body: form, Header: []string{"Content-Type", formType}}},
		"upload":    {call("POST", fmt.Sprintf("%s/upload?size=%d", at, len(harness.Cat)))},
		"commit":    {call("POST", at+"/upload/"+uploadID+"/commit")},
		"lookups":   {call("GET", at), call("HEAD", at)},
		"redirects": {call("GET", at+"/picture"), call("HEAD", at+"/picture")},
	}
	for path := range strings.FieldsSeq("/service /about / /page/app.js /page/style.css /page/icon.svg /openapi.json " +
		"/docs /docs/init.js /docs/swagger-ui.css") {
		o["static"] = append(o["static"], call("GET", path), call("HEAD", path))
		o["options"] = append(o["options"], call("OPTIONS", path))
	}
	for _, path := range []string{at, at + "/picture", at + "/upload", at + "/upload/" + uploadID + "/commit"} {
		o["options"] = append(o["options"], call("OPTIONS", path))
	}
	o["reads"] = o.all("lookups redirects")
	o["uploads"] = o.all("put post")
	o["conditional"] = o.all("uploads remove commit")
	o["writes"] = o.all("conditional upload")
	o["own"] = o.all("reads writes")
	return o
}

// all returns the calls of the named operations, with more headers.
func (o operations) all(names string, header ...string) (calls []harness.Call) {
	for name := range strings.FieldsSeq(names) {
		for _, k := range o[name] {
			calls = append(calls, k.With(header...))
		}
	}
	return calls
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
	stage := func(content []byte) (id string) { return harness.Stage(t, sys, "mia", content).ID }
	id := stage(harness.Cat)
	o := operationsOf(t, "mia", id)
	etag, md5 := c.send(t, sys, 200, o["put"]...).Header.Get("ETag"), harness.MD5(harness.Cat)
	const file = "--" + harness.Boundary + "\r\nContent-Disposition: form-data; name=\"file\"; filename=\"cat.png\"\r\n" +
		"Content-Type: image/png\r\n\r\n"
	for _, row := range harness.Table(t, "calls.txt", "{etag}", etag, "{md5}", md5, "{query md5}", url.QueryEscape(md5),
		"{full}", string(harness.Random(1<<20, 1)), "{cat}", string(harness.Cat),
		"{form}", harness.FormType, "{file}", file, "{end}", "\r\n"+harness.LastBoundary) {
		row = append(row, "", "", "")[:max(len(row), 5)]
		status, err := strconv.Atoi(row[0])
		if err != nil {
			t.Fatal(err)
		}
		method, target, _ := strings.Cut(row[2], " ")
		calls := []harness.Call{call(method, target)}
		if row[1] != "-" {
			calls = operationsOf(t, row[1], id).all(row[2])
		}
		for _, k := range calls {
			if strings.Contains(k.Target, "?") {
				k.Target += strings.Replace(row[3], "?", "&", 1)
			} else {
				k.Target += row[3]
			}
			if row[4] != "" {
				k.Body = []byte(row[4])
			}
			c.send(t, sys, status, k.With(row[5:]...))
		}
	}
	for _, k := range o["static"] {
		if tag := c.send(t, sys, 200, k.With("Accept-Encoding", "identity"), k).Header.Get("ETag"); tag != "" {
			c.send(t, sys, 304, k.With("If-None-Match", tag))
		}
	}
	c.sendHalf(t, sys, 400, true, o["uploads"]...)
	incomplete := harness.NewUploadSession(t, sys, "mia", int64(len(harness.Cat)+1))
	incomplete.Send(t, harness.Cat)
	for commit, status := range map[string]int{
		stage([]byte(page)) + "/commit":                                                 415,
		stage(append(harness.PNG(1<<16, 1<<16), make([]byte, 1000)...)) + "/commit":     413,
		incomplete.ID + "/commit":                                                       400,
		stage(harness.Cat) + "/commit?content_md5=" + url.QueryEscape(harness.MD5(nil)): 400,
	} {
		c.send(t, sys, status, call("POST", "/cat/mia/upload/"+commit))
	}
	c.send(t, sys, 204, o["remove"]...)
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
	calls := append(operationsOf(t, "mia", unusedID)["own"], call("GET", "/about"), call("HEAD", "/about"))
	harness.Each(len(calls), func(i int) { c.send(t, sys, 503, calls[i]) }) // each waits for a restart of the signer
}

// conformWithoutStorage makes storage reject requests, in another way for each user.
func conformWithoutStorage(t *testing.T, c *contract) {
	storage := harness.NewStorageProxy(t)
	sys := harness.StartDirect(t, stack.SystemOptions{StorageURL: storage.URL})
	var wg sync.WaitGroup
	defer wg.Wait()
	for code, statuses := range map[string][2]int{ // of storage and of the API
		"AuthorizationPermissionMismatch": {403, 502}, "ServerBusy": {503, 503}, "": {404, 500}, "InvalidUri": {400, 422},
		"InvalidBlockList": {400, 409}, "BlobArchived": {409, 409}, "BlobImmutableDueToPolicy": {409, 409},
		"LeaseIdMissing": {412, 409}, "InvalidBlobType": {409, 409}, "InternalError": {500, 503},
	} {
		user := "x" + code
		o := operationsOf(t, user, harness.Stage(t, sys, user, harness.Cat).ID)
		c.send(t, sys, 200, o["put"]...)
		storage.Set(user, harness.Reject(statuses[0], code, "Retry-After", map[string]string{"ServerBusy": "60"}[code]))
		calls := o["conditional"]
		if statuses[1] != 409 {
			calls = o.all("conditional reads")
		}
		for _, k := range calls {
			wg.Go(func() { c.send(t, sys, statuses[1], k) })
		}
	}
	storage.Set("damaged", harness.CRC64("AAAAAAAAAAA="))
	c.send(t, sys, 502, operationsOf(t, "damaged", "")["put"]...)
	keyless := harness.NewStorageProxy(t)
	keyless.SetAll(harness.Reject(403, "AuthorizationPermissionMismatch"))
	sys = harness.StartDirect(t, stack.SystemOptions{StorageURL: keyless.URL, NotReady: true})
	c.send(t, sys, 502, operationsOf(t, "mia", "")["upload"]...)
}

func conformWithAuthentication(t *testing.T, c *contract) {
	p := harness.StartProvider(t, "0")
	mia, tom := "Bearer "+p.Token(t, "mia", harness.Audience), "Bearer "+p.Token(t, "tom", harness.Audience)
	opts := harness.WithAuthentication(p.Issuer, nil)
	opts.FrontendEnv["OIDC_CLIENT_ID"] = "cats"
	sys, o := harness.StartDirect(t, opts), operationsOf(t, "mia", unusedID)
	c.send(t, sys, 200, append(o.all("put get", "Authorization", mia), call("GET", "/about"))...)
	c.send(t, sys, 401, append(o["own"], o.all("own", "Authorization", "Bearer mew.mew.mew")...)...)
	c.send(t, sys, 403, o.all("own", "Authorization", tom)...)

	limited := harness.WithAuthentication(p.Issuer, nil)
	limited.SignerEnv["RATE_LIMIT"], limited.SignerEnv["RATE_BURST"] = "0.01", "1"
	limited.FrontendEnv["RATE_LIMIT"] = "1000"
	few := harness.Start(t, limited)
	c.send(t, few, 404, o.all("get", "Authorization", mia)...)
	if a := c.send(t, few, 429, o.all("get", "Authorization", mia)...); len(a.Header.Values("RateLimit")) != 2 {
		t.Errorf("the limits of client and caller are not both in the header: %v", a.Header)
	}
	delete(opts.SignerEnv, "OIDC_ISSUER")
	delete(opts.SignerEnv, "OIDC_AUDIENCE")
	c.send(t, harness.StartDiffering(t, opts), 503, o.all("own", "Authorization", mia)...)
	p.Stop()
	opts = harness.WithAuthentication(p.Issuer, nil)
	opts.NotReady = true
	withoutKeys := harness.StartDirect(t, opts)
	calls := o.all("own", "Authorization", mia)
	harness.Each(len(calls), func(i int) { c.send(t, withoutKeys, 503, calls[i]) })
}

func conformOverRateLimit(t *testing.T, c *contract) {
	sys := harness.Start(t, stack.SystemOptions{FrontendEnv: map[string]string{"RATE_LIMIT": "0.01", "RATE_BURST": "1"}})
	if a := c.send(t, sys, 200, call("GET", "/service")); string(a.Body) != `{"service-name":"cats-api"}` { // the tutorial's response
		t.Errorf("/service is %s", a.Body)
	}
	c.send(t, sys, 429, operationsOf(t, "mia", unusedID).all("own static options")...)
}

// conformUnderLoad makes calls while all slots are taken by requests that wait for storage.
func conformUnderLoad(t *testing.T, c *contract) {
	storage := harness.NewStorageProxy(t)
	env := map[string]string{"MAX_UPLOADS": "4", "STALL_TIMEOUT": "1s"}
	sys := harness.StartDirect(t, stack.SystemOptions{StorageURL: storage.URL, FrontendEnv: env})
	o := operationsOf(t, "mia", unusedID)
	c.sendHalf(t, sys, 408, false, o["uploads"]...)
	c.send(t, sys, 200, o["put"]...)
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
		operation, status := "get", 404
		if i >= reads {
			operation, status = "put", 200
		}
		done.Go(func() { c.send(t, sys, status, operationsOf(t, fmt.Sprint("u", i), "")[operation]...) })
	}
	harness.Eventually(t, func() error {
		if n := held.Load(); n < slots {
			return fmt.Errorf("%d requests wait for storage", n)
		}
		return nil
	})
	c.send(t, sys, 503, o.all("own static options")...)
	storage.SetAll(nil)
	close(release)
	done.Wait()
}
