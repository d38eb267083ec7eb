package attacks

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

// from returns a client that has address, of the loopback interface, and what it
// gets for a request, with headers of its own, names and values in turn.
func from(t *testing.T, address string) func(method, url string, header ...string) harness.Response {
	t.Helper()
	client := clientFrom(t, address)
	return func(method, url string, header ...string) harness.Response {
		t.Helper()
		return harness.SendWith(t, client, method, url, "", header...)
	}
}

// One address that asks too much is refused, before it has sent a picture, and
// nobody else is; behind a trusted proxy, each client has an address of its own.
func TestOneAddressIsLimitedAndNobodyElse(t *testing.T) {
	t.Parallel()
	const burst = 20
	sys := harness.Start(t, stack.SystemOptions{FrontendEnv: map[string]string{
		"RATE_LIMIT": "0.5", "RATE_BURST": fmt.Sprint(burst), "CLIENT_SHARE": "0.016", "TRUSTED_PROXIES": "127.0.1.0/24",
	}})
	greedy, other, proxy := from(t, "127.0.0.2"), from(t, "127.0.0.3"), from(t, "127.0.1.1")
	target := sys.URL + "/service"
	var refused harness.Response
	n := 0
	for refused.Response == nil && n < 3*burst {
		a := greedy("GET", target, "X-Forwarded-For", fmt.Sprintf("203.0.113.%d", n))
		if a.Header.Get("RateLimit-Policy") != `"default";q=20;w=40` || !strings.HasPrefix(a.Header.Get("RateLimit"), `"default";r=`) {
			t.Errorf("%d says %q of %q", a.StatusCode, a.Header.Get("RateLimit"), a.Header.Get("RateLimit-Policy"))
		}
		if n++; a.StatusCode != 200 {
			refused = a
		}
	}
	if n <= burst || n > burst+5 || refused.StatusCode != 429 || refused.Field(t, "code") != "rate_limited" || !slices.Contains([]string{"1", "2"}, refused.Header.Get("Retry-After")) || refused.Header.Get("RateLimit") != `"default";r=0;t=`+refused.Header.Get("Retry-After") {
		t.Errorf("number %d was answered %d %v %s", n, refused.StatusCode, refused.Header, refused.Body)
	}
	other("GET", target).Want(t, 200)

	// It is refused before it has sent anything of a picture.
	conn, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP("127.0.0.2")}}).DialContext(t.Context(), "tcp", strings.TrimPrefix(sys.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for range 3 { // should a request have become possible meanwhile
		greedy("GET", target)
	}
	fmt.Fprint(conn, "PUT /cat/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\nExpect: 100-continue\r\n\r\n")
	_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	//lint:ignore bodyclose closing the connection is enough
	if resp, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil || resp.StatusCode != 429 || !resp.Close {
		t.Errorf("an upload that waits to be asked: %v, %v; want 429 at once", resp, err)
	}

	// Behind a proxy.
	for i := range burst + 3 {
		if a := proxy("GET", target, "X-Forwarded-For", fmt.Sprintf("10.0.0.%d, 203.0.113.7:%d", i, 1000+i)); a.StatusCode != 200 && i < burst {
			t.Errorf("number %d of a client behind a proxy: %d", i, a.StatusCode)
		}
	}
	proxy("GET", target, "X-Forwarded-For", "203.0.113.7").Want(t, 429)
	proxy("GET", target, "X-Forwarded-For", "203.0.113.8", "X-Request-Id", "by-proxy").Want(t, 200)
	other("GET", target, "X-Request-Id", "direct").Want(t, 200)
	for id, want := range map[string]string{"by-proxy": `"client.address":"203.0.113.8"`, "direct": ""} {
		line, err := sys.Frontend.Log.Wait(t.Context(), 0, func(line string) bool { return strings.Contains(line, `"request_id":"`+id+`"`) })
		if err != nil || strings.Contains(line, `"client.address"`) != (want != "") || !strings.Contains(line, want) || !strings.Contains(line, `"network.peer.address":"127.0.`) {
			t.Errorf("%v: %s", err, line)
		}
	}
	if n := harness.Sum(t, sys.FrontendOps, "cats_frontend_requests_rate_limited_total"); n < 7 {
		t.Errorf("%v refusals are counted", n)
	}

	// Uploads under way. They are another limit than that of requests.
	up := func() *net.TCPConn {
		c, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP("127.0.0.4")}}).DialContext(t.Context(), "tcp", strings.TrimPrefix(sys.URL, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		fmt.Fprintf(c, "PUT /cat/up HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s", len(harness.Cat), harness.Cat[:len(harness.Cat)-1])
		return c.(*net.TCPConn)
	}
	first, second := up(), up()
	harness.Eventually(t, func() error {
		if n := harness.Sum(t, sys.SignerOps, "cats_signer_http_requests_in_flight"); n < 2 {
			return fmt.Errorf("%v uploads are under way", n)
		}
		return nil
	})
	if s := harness.ReadStatus(t, up()); s != 429 {
		t.Errorf("a third upload at once: %d", s)
	}
	other("GET", target).Want(t, 200)
	for _, c := range []*net.TCPConn{first, second} {
		_, _ = c.Write(harness.Cat[len(harness.Cat)-1:])
		if s := harness.ReadStatus(t, c); s != 200 {
			t.Errorf("one of two: %d", s)
		}
	}
}

// A day's work with a token, of links, errors and headers of all kinds: neither the
// token nor a signature is to be found in what is written or told of it.
func TestLinksAndTokensAreToldToNobody(t *testing.T) {
	t.Parallel()
	const token, claim = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJtaWEifQ.c2lnbmF0dXJlLW9mLW1pYQ", "sig="
	storage := harness.NewStorageProxy(t)
	debug := map[string]string{"LOG_LEVEL": "debug", "MAX_PICTURE_SIZE": "64KiB"}
	sys := harness.Start(t, stack.SystemOptions{StorageURL: storage.URL, FrontendEnv: harness.Merge(debug, map[string]string{"CORS_ORIGINS": "https://cats.example.com"}), SignerEnv: debug})
	picture := string(harness.Picture(20<<10, 'p'))
	var told []string // what is for others than the one who may have the link
	headers := []string{"Authorization", "Bearer " + token, "Origin", "https://cats.example.com", "User-Agent", "Mozilla/5.0 (" + claim + token + ")"}
	work := func(status int, method, path, body string, more ...string) harness.Response {
		t.Helper()
		a := harness.Send(t, method, sys.URL+path, body, append(append([]string{}, headers...), more...)...)
		if a.StatusCode != status {
			t.Errorf("%s %s: %d %s; want %d", method, path, a.StatusCode, a.Body, status)
		}
		for name, values := range a.Header {
			if name != "Location" {
				told = append(told, name+": "+strings.Join(values, " "))
			}
		}
		if a.StatusCode >= 400 || method != "GET" {
			told = append(told, string(a.Body))
		}
		return a
	}
	work(200, "PUT", "/cat/mia", picture)
	work(412, "PUT", "/cat/mia", picture, "If-None-Match", "*")
	link, _ := work(200, "GET", "/cat/mia?ttl=10m&download=mia.png", "").Field(t, "picture_url").(string)
	redirect := work(307, "GET", "/cat/mia/picture", "")
	if !strings.Contains(link, claim) || !strings.Contains(redirect.Header.Get("Location"), claim) || redirect.Header.Get("Referrer-Policy") != "no-referrer" {
		t.Errorf("a link is %s, a redirect says %v", link, redirect.Header)
	}
	signature := link[strings.Index(link, claim)+len(claim):]
	signature, _, _ = strings.Cut(signature, "&")
	harness.Do(t, "GET", link, "", nil).Want(t, 200)
	_, query, _ := strings.Cut(link, "?")
	headers = append(headers, "Referer", link, "Cookie", "token="+token, "X-Request-Id", claim+"x?"+signature, "Traceparent", signature, "X-Forwarded-For", link, "Forwarded", "for="+token)
	work(200, "GET", "/cat/mia", "")
	work(404, "GET", "/cat/nobody?"+query, "")
	work(404, "GET", "/"+token+"?"+query, "")
	work(422, "GET", "/cat/"+strings.Repeat(token, 3)+"?"+query, "")
	work(422, "GET", "/cat/mia?ttl="+token, "")
	work(422, "GET", "/cat/mia?download=%2F"+token, "")
	work(414, "GET", "/cat/mia?"+strings.Repeat(query, 30), "")
	work(413, "PUT", "/cat/mia", strings.Repeat(picture, 5))
	work(415, "PUT", "/cat/mia", "<a href="+link+">")
	work(422, "POST", "/cat/mia", "file="+link, "Content-Type", "application/x-www-form-urlencoded")
	work(400, "POST", "/cat/mia", "--b\r\n"+link, "Content-Type", "multipart/form-data; boundary=b")
	work(422, "PUT", "/cat/mia", picture, "Content-Digest", token)
	work(422, "PUT", "/cat/mia", picture, "If-Match", token)
	work(405, "PATCH", "/cat/mia", "")
	work(403, "PUT", "/cat/mia", picture, "Origin", "https://"+token+".example", "Sec-Fetch-Site", "cross-site")
	work(204, "OPTIONS", "/cat/mia", "", "Access-Control-Request-Method", "PUT", "Access-Control-Request-Headers", "authorization")
	storage.Set("mia", harness.Reject(403, "AuthorizationPermissionMismatch"))
	work(502, "GET", "/cat/mia", "")
	work(502, "PUT", "/cat/mia", picture)
	storage.Set("mia", harness.Reject(503, "ServerBusy", "Retry-After", "9"))
	work(503, "GET", "/cat/mia", "")
	work(503, "DELETE", "/cat/mia", "")
	storage.Set("mia", nil)
	work(204, "DELETE", "/cat/mia", "")
	fmt.Fprint(harness.Dial(t, sys), "GET /cat/mia?"+query+" HTTP/1.1\r\nAuthorization: Bearer "+token+"\r\n : x\r\n\r\n")
	harness.Do(t, "GET", sys.URL+"/service", "", nil) // the log's last line but one is out with the next

	for _, base := range []string{sys.FrontendOps, sys.SignerOps} {
		told = append(told, string(harness.Do(t, "GET", base+"/metrics", "", nil).Want(t, 200).Body))
	}
	if _, err := sys.Frontend.Log.Wait(t.Context(), 0, func(line string) bool { return strings.Contains(line, `"http.route":"/service"`) }); err != nil {
		t.Error(err)
	}
	for _, log := range []*stack.Log{sys.Frontend.Log, sys.Signer.Log} {
		text, err := os.ReadFile(log.Path())
		if err != nil || len(text) < 1000 {
			t.Errorf("%s: %d bytes, %v", log.Path(), len(text), err)
		}
		told = append(told, string(text))
	}
	for _, text := range told {
		for _, secret := range []string{claim, "sig%3D", token, signature, harness.JWTPrefix} {
			for line := range strings.Lines(text) {
				if strings.Contains(line, secret) {
					t.Errorf("%q is told in %.300s", secret, line)
				}
			}
		}
	}
}

// While storage does not answer, one client holds no more than its share of the requests, and others are served.
func TestStorageThatStallsLeavesSlotsForOthers(t *testing.T) {
	t.Parallel()
	const most = 8
	storage := harness.NewStorageProxy(t)
	few := map[string]string{"MAX_UPLOADS": "4", "CLIENT_SHARE": "0.5"} // 16 requests
	sys := harness.Start(t, stack.SystemOptions{StorageURL: storage.URL, FrontendEnv: few, SignerEnv: few})
	release := make(chan struct{})
	storage.Set("stalled", func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
		<-release
		healthy.ServeHTTP(w, r)
	})
	statuses := make(chan int, most)
	for range most {
		conn := harness.Dial(t, sys)
		fmt.Fprint(conn, "GET /cat/stalled HTTP/1.1\r\nHost: localhost\r\n\r\n")
		go func() { statuses <- harness.ReadStatus(t, conn) }()
	}
	harness.Eventually(t, func() error {
		if n := harness.Sum(t, sys.FrontendOps, "cats_frontend_http_requests_in_flight"); n < most {
			return fmt.Errorf("%v requests wait", n)
		}
		return nil
	})
	a := harness.Do(t, "GET", sys.URL+"/cat/stalled", "", nil)
	if a.Want(t, 429); a.Field(t, "code") != "rate_limited" || a.Header.Get("Retry-After") == "" || a.Header.Get("X-Content-Type-Options") == "" {
		t.Errorf("one too many: %v %s", a.Header, a.Body)
	}
	other := from(t, "127.0.0.2")
	other("GET", sys.URL+"/cat/other").WantProblem(t, 404, "not_found")
	harness.SendWith(t, clientFrom(t, "127.0.0.2"), "PUT", sys.URL+"/cat/other", string(harness.Cat)).Want(t, 200)
	close(release)
	for range most {
		if s := <-statuses; s != 404 && s != 503 { // on a slow machine the signer may have given up
			t.Errorf("one that waited: %d", s)
		}
	}
	harness.Served(t, sys, "other")
}
