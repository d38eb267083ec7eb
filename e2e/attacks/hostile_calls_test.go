package attacks

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"mime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"cats.example/e2e/harness"
)

// names tries to make one name mean another blob.
func (h *hostile) names(t *testing.T, small string, stored func(string)) {
	for query, user := range map[string]string{ // "" is refused
		"user=..": "", "user=.": "", "user=%2e%2e": "", "user=%2E": "", "user=a.": "", "user=a%2e": "", "user=..%20..": "", "user=%2e%2e%2fvictim": "",
		"user=a/b": "", "user=a%2fb": "", "user=a%2Fb": "", "user=/a": "", "user=a\\b": "", "user=a%5cb": "", "user=..%5cvictim": "", "user=..%2f..%2f" + secretContainer + "%2fboss": "",
		"user=%252e%252e": "%2e%2e", "user=a%252fb": "a%2fb", "user=%252e%252e%252fvictim": "%2e%2e%2fvictim", "user=a%255cb": "a%5cb", "user=%2500": "%00",
		"user=%c0%ae%c0%ae": "", "user=%c0%af": "", "user=%e0%80%af": "", "user=%ff": "", "user=%fe%ff": "", "user=%ed%a0%80": "", "user=%f4%90%80%80": "", "user=a%80": "",
		"user=a%00": "", "user=%00a": "", "user=victim%00.png": "", "user=a%0a": "", "user=a%0d%0aX-Ms-Copy-Source:%20x": "", "user=a%09b": "", "user=%7f": "", "user=%c2%85": "", "user=a%e2%80%a8b": "", "user=%e2%80%a9": "",
		"user=%ef%bc%8f": "／", "user=a%e2%88%95b": "a∕b", "user=a%e2%81%84b": "a⁄b", "user=%ef%bc%bc": "＼", "user=a%e2%88%96b": "a∖b", "user=%ef%bc%8e%ef%bc%8e": "．．", "user=%e2%80%a4%e2%80%a4": "․․", "user=%e2%80%a6": "…",
		"user=caf%c3%a9": "caf\u00e9", "user=cafe%cc%81": "cafe\u0301", "user=%e2%84%aa": "\u212a", "user=K": "K", "user=k": "k", "user=VICTIM": "VICTIM", "user=v%c4%b1ctim": "v\u0131ctim", "user=%e2%80%8bvictim": "\u200bvictim", "user=%e2%80%aevictim": "\u202evictim", "user=%ef%bb%bfvictim": "\ufeffvictim",
		"user=+victim": " victim", "user=victim%20": "victim ", "user=%20": " ", "user=a.%20": "a. ", "user=.a": ".a", "user=..a": "..a",
		"user=" + strings.Repeat("x", 128): strings.Repeat("x", 128), "user=" + strings.Repeat("x", 129): "", "user=" + strings.Repeat("%F0%9F%90%88", 32): strings.Repeat("🐈", 32), "user=" + strings.Repeat("%F0%9F%90%88", 33): "", "user=" + strings.Repeat("x", 10_000): "",
		"user=%ee%80%80": "", "user=a%ef%80%83": "", "user=%f3%b0%80%80": "", "user=%f4%8f%bf%bd": "", "user=%ef%bf%be": "", "user=%ef%b7%90": "", "user=%f0%9f%bf%bf": "", "user=%ef%bf%bc": "\ufffc", "user=%ef%b7%b0": "\ufdf0",
		"user=": "", "": "", "user": "", "user=a&user=b": "", "user=a&user=a": "", "user=&user=victim": "", "User=a": "", "USER=a": "", "user[]=a": "", "user%5b%5d=a": "", "user.0=a": "", "%20user=a": "", "user%00=a": "", "user;user=a": "",
		"user=a;user=b": "", "user=%u002e": "", "user=%": "", "user=%zz": "", "user=a%2": "", "us%65r=encoded": "encoded", "user=a%26user=b": "a&user=b", "user=a%3fcomp=list": "a?comp=list", "user=a%23b": "a#b", "user=a%3bb": "a;b", "user=a?b": "a?b", "user=a=b": "a=b",
		"user=$root": "$root", "user=$web": "$web", "user=$logs": "$logs", "user=" + secretContainer: secretContainer, "user=cat": "cat", "user=%3cscript%3e": "<script>", "user=a%22b": `a"b`, "user='%20or%201=1": "' or 1=1",
	} {
		status, want := 422, user
		if user != "" {
			status = 200
			stored(user)
		}
		if a := h.say(t, call("PUT", "/v1/picture?"+query, known, small)); a.StatusCode != status {
			t.Errorf("put of %.60s: %d %s; want %d", query, a.StatusCode, a.Body, status)
		}
		a := h.say(t, call("GET", "/v1/link?"+query, known, ""))
		if a.StatusCode != status {
			t.Errorf("link of %.60s: %d %s; want %d", query, a.StatusCode, a.Body, status)
		} else if user != "" {
			h.linkOf(t, a, want, time.Hour)
		}
		if user != "" {
			continue
		}
		if a := h.say(t, call("DELETE", "/v1/picture?"+query, known, "")); a.StatusCode != status {
			t.Errorf("delete of %.60s: %d %s; want %d", query, a.StatusCode, a.Body, status)
		}
	}
	// Where no name belongs.
	for _, raw := range []string{
		call("PUT", "/v1/picture", known+"Content-Type: application/x-www-form-urlencoded\r\n", "user=victim"),
		call("PUT", "/v1/picture", known+"User: victim\r\nX-User: victim\r\nCookie: user=victim\r\n", small),
		call("DELETE", "/v1/picture#user=victim", known, ""), call("DELETE", "/v1/picture#?user=victim", known, ""),
		call("DELETE", "/v1/picture/victim", known, ""), call("DELETE", "/v1/picture;user=victim", known, ""),
	} {
		if a := h.say(t, raw); a.StatusCode/100 != 4 {
			t.Errorf("%.100q: %d %s", raw, a.StatusCode, a.Body)
		}
	}
}

// paths tries others than the contract's.
func (h *hostile) paths(t *testing.T, small string) {
	before := h.requests()
	for _, path := range []string{
		"/", "//", "/v1", "/v1/", "/v1/pictures", "/v1/list", "/v2/picture", "/metrics", "/livez", "/readyz", "/debug/pprof/", "/debug/vars", "/container", "/..", "/../v1/picture",
		"//v1/picture", "/v1//picture", "/./v1/picture", "/v1/./picture", "/v1/link/../picture", "/v1/picture/../link", "/v1/picture/..", "/v1/picture/", "/v1/picture//", "/v1/picture/.",
		"/v1/picture%2f..", "/v1%2fpicture", "/%76%31/picture", "/v1/%70icture", "/v1/picture%00", "/v1/picture%20", "/v1\\picture", "/V1/PICTURE", "/v1/Picture", "/v1/picture;a=b", "/v1/picture.json", "/v1/picture%3fuser=victim",
		"http://127.0.0.1/v1/pictures", "http://elsewhere/", "https://elsewhere/v1/picture/..", "*", "v1/picture", "", "http://[::1/v1/picture", "//elsewhere/v1/picture",
	} {
		for _, method := range []string{"PUT", "GET", "DELETE", "POST", "PATCH", "COPY", "MKCOL", "PROPFIND", "TRACE", "HEAD"} {
			body := map[bool]string{true: small}[method == "PUT"]
			if a := h.say(t, call(method, path+"?user=victim", known, body)); a.StatusCode/100 != 4 {
				t.Errorf("%s %s: %d %s", method, path, a.StatusCode, a.Body)
			}
		}
	}
	for _, c := range []struct{ methods, path string }{{"GET POST PATCH HEAD COPY TRACE LINK put", "/v1/picture"}, {"PUT POST DELETE HEAD OPTIONS get", "/v1/link"}, {"PUT POST DELETE HEAD", "/v1/ready"}} {
		for method := range strings.FieldsSeq(c.methods) {
			header := known + "X-HTTP-Method-Override: DELETE\r\nX-Method-Override: DELETE\r\nX-HTTP-Method: DELETE\r\n"
			if a := h.say(t, call(method, c.path+"?user=victim&_method=DELETE", header, "")); a.StatusCode != 405 {
				t.Errorf("%s %s: %d %s", method, c.path, a.StatusCode, a.Body)
			}
		}
	}
	if a := h.say(t, call("CONNECT", "elsewhere:443", known, "")); a.StatusCode/100 != 4 {
		t.Errorf("CONNECT: %d %s", a.StatusCode, a.Body)
	}
	if n := h.requests() - before; n != 0 {
		t.Errorf("storage was asked %d times", n)
	}
}

// arguments tries those that do not exist: they change nothing.
func (h *hostile) arguments(t *testing.T, small string, stored func(string)) {
	for _, more := range []string{
		"container=" + secretContainer, "blob=boss/cat", "blob_name=boss", "name=boss", "path=boss/cat", "permissions=racwdl", "sp=racwdl", "sr=c", "se=2099-01-01", "st=2000-01-01", "sv=2015-02-21", "spr=http", "sip=0.0.0.0", "sig=x",
		"content_type=text/html", "rsct=text/html", "rscd=inline", "rscc=public", "versionid=2020-01-01T00:00:00Z", "snapshot=2020-01-01T00:00:00Z", "comp=list", "comp=lease", "restype=container", "timeout=1", "prefix=", "marker=",
		"metadata=a", "tags=a", "tier=Archive", "copy_source=http://127.0.0.1/", "lease=x", "overwrite=true", "ttl=1000h", "TTL_SECONDS=9999999", "expiry=1", "if_match", "recursive=true", "_=1",
	} {
		a := h.say(t, call("GET", "/v1/link?user=victim&"+more, known, ""))
		if u := h.linkOf(t, a, "victim", time.Hour); u.Query().Get("rscd") != "inline; filename=cat.png" {
			t.Errorf("%s: the link is served with the disposition %q", more, u.Query().Get("rscd"))
		}
		if a := h.say(t, call("PUT", "/v1/picture?user=arguments&"+more, known, small)); a.StatusCode != 200 {
			t.Errorf("%s: %d %s", more, a.StatusCode, a.Body)
		}
	}
	stored("arguments")
	for _, header := range []string{
		"X-Ms-Copy-Source: http://127.0.0.1/x", "X-Ms-Blob-Type: AppendBlob", "X-Ms-Meta-A: b", "X-Ms-Tags: a=b", "X-Ms-Blob-Content-Type: text/html", "X-Ms-Blob-Cache-Control: public", "X-Ms-Blob-Content-Disposition: inline",
		"X-Ms-Lease-Id: 0", "X-Ms-Access-Tier: Archive", "X-Ms-Version: 2015-02-21", "X-Ms-Encryption-Key: AAAA", "X-Ms-Acl: public", "X-Ms-Delete-Snapshots: only", "Content-Type: text/html", "Content-Encoding: gzip",
		"Content-Language: x", "Cache-Control: public", "Content-Disposition: inline", "Content-Range: bytes 0-9/100", "Range: bytes=0-1", "X-Ms-Range: bytes=0-1", "If-Match: \"x\"", "If-None-Match: *", "If-Modified-Since: Mon, 01 Jan 2001 00:00:00 GMT",
		"X-Original-URL: /v1/list", "X-Rewrite-URL: /v1/list", "X-Forwarded-Host: elsewhere", "X-Forwarded-Proto: http", "Forwarded: host=elsewhere", "Upgrade: websocket", "Upgrade: h2c", "TE: trailers", "Via: 1.1 x", "X-Request-Id: a\tb", "Traceparent: x",
	} {
		if a := h.say(t, call("PUT", "/v1/picture?user=arguments", known+header+"\r\n", small)); a.StatusCode != 200 {
			t.Errorf("%s: %d %s", header, a.StatusCode, a.Body)
		}
		h.linkOf(t, h.say(t, call("GET", "/v1/link?user=victim", known+header+"\r\n", "")), "victim", time.Hour)
	}
	header, b, err := h.sys.Storage.Read(t.Context(), h.sys.Container, "arguments/cat")
	if err != nil || string(b) != small || header.Get("Content-Type") != "image/png" || header.Get("Cache-Control")+header.Get("Content-Disposition")+header.Get("Content-Encoding")+header.Get("X-Ms-Meta-A") != "" {
		t.Errorf("what is stored is %d bytes of %v, %v", len(b), header, err)
	}
}

// lifetimes tries to get a link that lives for longer than may be.
func (h *hostile) lifetimes(t *testing.T) {
	for ttl, seconds := range map[string]int{ // 0 is refused
		"": 3600, "5": 5, "60": 60, "007": 7, "%2B60": 60, "86400": 86400, "0": 0, "-0": 0, "-1": 0, "1": 0, "4": 0, "86401": 0, "90000": 0, "-86400": 0,
		"9223372036": 0, "9223372037": 0, "9223372036854775807": 0, "9223372036854775808": 0, "18446744073709551676": 0, "-9223372036854775808": 0, "99999999999999999999999999": 0,
		"1e9": 0, "1e1": 0, "0x10": 0, "010h": 0, "1_0": 0, "6.0": 0, "60,0": 0, "60s": 0, "1h": 0, "Inf": 0, "NaN": 0, "null": 0, "+60": 0, "%2060": 0, "60%20": 0, "60%00": 0, "60%0a": 0, "%D9%A6%D9%A0": 0, "%EF%BC%96%EF%BC%90": 0, "60;61": 0, "60&ttl_seconds=86400": 0,
	} {
		a := h.say(t, call("GET", "/v1/link?user=victim&ttl_seconds="+ttl, known, ""))
		if seconds > 0 {
			h.linkOf(t, a, "victim", time.Duration(seconds)*time.Second)
		} else if a.StatusCode != 422 {
			t.Errorf("ttl %s: %d %s", ttl, a.StatusCode, a.Body)
		}
	}
}

// downloads tries to put more than a file name into what storage then answers.
func (h *hostile) downloads(t *testing.T) {
	for download, name := range map[string]string{ // "" is refused
		"a.png": "a.png", "a%22b": `a"b`, "a%3b%20filename=b": "a; filename=b", "%22%3b%20filename*=utf-8''x.exe": `"; filename*=utf-8''x.exe`, "%E7%8C%AB.png": "猫.png", "a%27%25b": "a'%b", "..": "..", "%E2%80%AEgnp.exe": "\u202egnp.exe", "a,b=c": "a,b=c",
		strings.Repeat("x", 255): strings.Repeat("x", 255), strings.Repeat("%C3%A9", 127): strings.Repeat("é", 127), "%c3%a9%22%5b%7b": `é"[{`,
		strings.Repeat("x", 256): "", strings.Repeat("%C3%A9", 128): "", "a%0d%0aSet-Cookie:%20x": "", "a%0ab": "", "a%0d": "", "x%0a%0asp=racwdl": "", "%0a": "", "a%00": "", "a%7f": "", "a%09b": "", "a%C2%85b": "", "a%E2%80%A8b": "", "a%E2%80%A9": "",
		"a/b": "", "..%2fa": "", "a%5cb": "", "%ff": "", "%c0%af": "", "a&download=b": "", "a;b": "",
	} {
		a := h.say(t, call("GET", "/v1/link?user=victim&download="+download, known, ""))
		if name == "" {
			if a.StatusCode != 422 {
				t.Errorf("download %.60s: %d %s", download, a.StatusCode, a.Body)
			}
			continue
		}
		name = strings.TrimSuffix(name, ".png") + ".png" // whatever it is called, it is saved as a picture
		u := h.linkOf(t, a, "victim", time.Hour)
		fetched := harness.Send(t, "GET", u.String(), "")
		kind, params, err := mime.ParseMediaType(fetched.Header.Get("Content-Disposition"))
		if fetched.StatusCode != 200 || err != nil || kind != "attachment" || len(params) != 1 || params["filename"] != name || fetched.Header.Get("Content-Type") != "image/png" || fetched.Header.Get("Set-Cookie") != "" {
			t.Errorf("download %.60s: %d, %q of %q, %v", download, fetched.StatusCode, fetched.Header.Get("Content-Disposition"), fetched.Header.Get("Content-Type"), err)
		}
	}
}

// links tries what one link can be bent to, where it counts: at storage.
func (h *hostile) links(t *testing.T, small string) {
	for _, query := range []string{"", "&ttl_seconds=86400", "&download=x%22%3b%20a"} {
		u := h.linkOf(t, h.say(t, call("GET", "/v1/link?user=victim"+query, known, "")), "victim", 24*time.Hour)
		if a := harness.Send(t, "GET", u.String(), ""); a.StatusCode != 200 || string(a.Body) != small {
			t.Errorf("the link gives %d, %d bytes", a.StatusCode, len(a.Body))
		}
		at := func(path, more string) string { return u.Scheme + "://" + u.Host + path + "?" + u.RawQuery + more }
		changed := func(name, value string) string {
			q := u.Query()
			q.Set(name, value)
			return u.Scheme + "://" + u.Host + u.EscapedPath() + "?" + q.Encode()
		}
		for _, c := range []struct{ what, method, target string }{
			{"a write", "PUT", u.String()},
			{"a delete", "DELETE", u.String()},
			{"a snapshot", "PUT", u.String() + "&comp=snapshot"},
			{"metadata", "PUT", u.String() + "&comp=metadata"},
			{"a list", "GET", at("/"+h.sys.Container, "&restype=container&comp=list")},
			{"a list of containers", "GET", at("/", "&comp=list")},
			{"another's picture", "GET", at("/"+h.sys.Container+"/cat/cat", "")},
			{"another container", "GET", at("/"+secretContainer+"/"+secretBlob, "")},
			{"another permission", "GET", changed("sp", "racwdl")},
			{"another resource", "GET", changed("sr", "c")},
			{"a longer life", "GET", changed("se", "2099-01-01T00:00:00Z")},
			{"another key", "GET", changed("ske", "2099-01-01T00:00:00Z")},
			{"another name to save it by", "GET", changed("rscd", "inline")},
		} {
			if a := harness.Send(t, c.method, c.target, "", "X-Ms-Blob-Type", "BlockBlob"); a.StatusCode/100 == 2 {
				t.Errorf("%s: %d", c.what, a.StatusCode)
			}
		}
	}
}

// bodies tries to store what is not a picture, not whole, or not of this request.
func (h *hostile) bodies(t *testing.T, small string, stored func(string)) {
	const target, chunked = "/v1/picture?user=victim", "Transfer-Encoding: chunked\r\n"
	inChunks := func(s string) string { return fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(s), s) }
	smuggled := call("DELETE", target, known, "")
	huge := small + strings.Repeat("x", 1<<20+64<<10)
	sum32, sum64 := strings.Repeat("00", 32), strings.Repeat("00", 64)
	var wg sync.WaitGroup
	for name, c := range map[string]struct {
		raw      string
		statuses []int // 0 where the connection may be closed instead
	}{
		"over the limit":                  {call("PUT", target, known+"Content-Length: 1099511627776\r\n", huge), []int{413}},
		"over the limit, asks first":      {call("PUT", target+"&size=99999999", known+"Expect: 100-continue\r\nContent-Length: 99999999\r\n", ""), []int{413}},
		"over the limit in chunks":        {call("PUT", target, known+chunked, inChunks(huge)), []int{413}},
		"over the limit, says less":       {call("PUT", target+"&size=100", known+chunked, inChunks(huge)), []int{400, 413}},
		"over the limit, says so":         {call("PUT", target+"&size=99999999", known, small), []int{413}},
		"larger than is said":             {call("PUT", target+"&size=100", known, small), []int{400}},
		"smaller than is said":            {call("PUT", target+"&size=5000", known, small), []int{400}},
		"a size of none":                  {call("PUT", target+"&size=0", known, small), []int{422}},
		"a size below zero":               {call("PUT", target+"&size=-1", known, small), []int{422}},
		"a size beyond 63 bits":           {call("PUT", target+"&size=18446744073709555712", known, small), []int{422}},
		"a size in hex":                   {call("PUT", target+"&size=0x1000", known, small), []int{422}},
		"two sizes":                       {call("PUT", target+"&size=4096&size=5", known, small), []int{422}},
		"nothing":                         {call("PUT", target, known, ""), []int{422}},
		"nothing in chunks":               {call("PUT", target, known+chunked, "0\r\n\r\n"), []int{422}},
		"one byte":                        {call("PUT", target, known, "x"), []int{415}},
		"HTML":                            {call("PUT", target, known+"Content-Type: image/png\r\n", "<html><script>alert(1)</script>"), []int{415}},
		"SVG":                             {call("PUT", target, known+"Content-Type: image/png\r\n", `<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>`), []int{415}},
		"a program":                       {call("PUT", target, known, "MZ\x90\x00\x03"+strings.Repeat("\x00", 100)), []int{415}},
		"a lie of MD5":                    {call("PUT", target+"&md5="+sum32[:32], known, small), []int{400}},
		"a lie of SHA-256":                {call("PUT", target+"&sha256="+sum32, known, small), []int{400}},
		"a lie of SHA-512":                {call("PUT", target+"&sha512="+sum64, known, small), []int{400}},
		"a short digest":                  {call("PUT", target+"&md5=00", known, small), []int{422}},
		"no digest":                       {call("PUT", target+"&sha256=victim", known, small), []int{422}},
		"a condition of two":              {call("PUT", target+`&if_match="a","b"`, known, small), []int{422}},
		"a condition with a line end":     {call("PUT", target+"&if_none_match=%22a%0d%0ax-ms-copy-source:%22", known, small), []int{422}},
		"a weak condition":                {call("DELETE", target+"&if_match=W/%22a%22", known, ""), []int{422}},
		"a condition that does not hold":  {call("DELETE", target+"&if_match=%22a%22", known, ""), []int{412}},
		"another expectation":             {call("PUT", target, known+"Expect: 200-ok\r\n", small), []int{417}},
		"an encoding twice":               {call("PUT", target, known+chunked+chunked, inChunks(small)), []int{400, 501}},
		"another encoding":                {call("PUT", target, known+"Transfer-Encoding: gzip, chunked\r\n", inChunks(small)), []int{400, 501}},
		"an encoding in disguise":         {call("PUT", target, known+"Transfer-Encoding: \x0bchunked\r\n", inChunks(small)), []int{400, 501}},
		"two lengths":                     {call("PUT", target, known+"Content-Length: 4096\r\nContent-Length: 5\r\n", small), []int{400}},
		"a length with a sign":            {call("PUT", target, known+"Content-Length: +4096\r\n", small), []int{400}},
		"a chunk beyond 64 bits":          {call("PUT", target, known+chunked, "fffffffffffffffff\r\n"+small), []int{400}},
		"a chunk of 64 bits":              {call("PUT", target, known+chunked, "ffffffffffffffff\r\n"+huge+huge), []int{400, 413}},
		"a chunk below zero":              {call("PUT", target, known+chunked, "-1\r\n"+small), []int{400}},
		"a chunk with 0x":                 {call("PUT", target, known+chunked, "0x1000\r\n"+small+"\r\n0\r\n\r\n"), []int{400}},
		"a chunk longer than its size":    {call("PUT", target, known+chunked, "5\r\n"+small+"\r\n0\r\n\r\n"), []int{400}},
		"an extension of megabytes":       {call("PUT", target, known+chunked, "1000;"+strings.Repeat("x", 3<<20)+"\r\n"+small+"\r\n0\r\n\r\n"), []int{400}},
		"extensions of a thousand chunks": {call("PUT", target, known+chunked, strings.Repeat("1;"+strings.Repeat("x", 3000)+"\r\nx\r\n", 1000)), []int{400, 415}},
		"trailers that do not end":        {call("PUT", target, known+chunked, strings.TrimSuffix(inChunks(small), "\r\n")+strings.Repeat("X: y\r\n", 2000)), []int{400}},
		"a trailer that is no header":     {call("PUT", target, chunked+"Trailer: Cats-Contract\r\n", strings.TrimSuffix(inChunks(small), "\r\n")+known+"\r\n"), []int{403}},
		"a request in a refused body":     {strings.Replace(call("PUT", target, known, strings.Repeat(smuggled, 50)), "Connection: close\r\n", "", 1), []int{415}},
		"a request behind a refusal":      {strings.Replace(call("PUT", target, known+"Content-Length: 900000\r\n", strings.Repeat(smuggled, 50)), "Connection: close\r\n", "", 1), []int{415}},
		"a request in a forged body":      {strings.Replace(call("PUT", target, "", smuggled+smuggled), "Connection: close\r\n", "", 1), []int{403}},
		"a request behind broken chunks":  {strings.Replace(call("PUT", target, known+chunked, "zz\r\n"+smuggled), "Connection: close\r\n", "", 1), []int{400, 415}},
		"a request behind both lengths":   {call("PUT", target, known+chunked+"Content-Length: 5\r\n", "0\r\n\r\n"+smuggled), []int{422, 400}},
	} {
		wg.Go(func() {
			conn := h.dial(t)
			defer func() { _ = conn.Close() }()
			go func() { _, _ = io.WriteString(conn, c.raw) }() // it may well be cut off amid that
			in := bufio.NewReader(conn)
			a := h.hear(t, name, in)
			if !slices.Contains(c.statuses, a.StatusCode) && (a.StatusCode != 0 || !slices.Contains(c.statuses, 400)) { // of what is no HTTP, the refusal may be lost to the reset
				t.Errorf("%s: %d %s; want %v", name, a.StatusCode, a.Body, c.statuses)
			}
			if strings.HasPrefix(name, "a request ") {
				// What comes is the end of the connection, or a refusal of the rest.
				if next := h.hear(t, name, in); next.StatusCode/100 == 2 {
					t.Errorf("%s: what came out of it was answered with %d", name, next.StatusCode)
				}
			}
		})
	}
	wg.Wait()
	for _, sent := range []int{0, 10, 3000, len(small) - 1} { // and then no more
		conn := h.dial(t)
		_, _ = io.WriteString(conn, call("PUT", target, known+fmt.Sprintf("Content-Length: %d\r\n", len(small)), small[:sent]))
		_ = conn.CloseWrite()
		if a := h.hear(t, "half a picture", bufio.NewReader(conn)); a.StatusCode/100 == 2 {
			t.Errorf("%d bytes of %d: %d", sent, len(small), a.StatusCode)
		}
	}
	// The type is what the first bytes say. What comes behind them may be anything: a
	// browser that goes by the type runs none of it.
	polyglot := "GIF89a/*" + strings.Repeat(" ", 3100) + "*/=1;<script>alert(1)</script>"
	if a := h.say(t, call("PUT", "/v1/picture?user=polyglot", known+"Content-Type: text/html\r\n", polyglot)); a.StatusCode != 200 || fieldOf(a, "content_type") != "image/gif" {
		t.Errorf("a GIF with a script in it: %d %s", a.StatusCode, a.Body)
	}
	stored("polyglot")
}

// forged requests come from elsewhere in the pod: from who can choose an address, and
// seldom a header.
func (h *hostile) forged(t *testing.T, small string) {
	before := h.requests()
	for _, header := range []string{
		"", "Cats-Contract:\r\n", "Cats-Contract: 0\r\n", "Cats-Contract: 2\r\n", "Cats-Contract: 11\r\n", "Cats-Contract: 1, 1\r\n", "Cats-Contract: true\r\n", "Cats-Contract: \"1\"\r\n", "Cats-Contract: 0\r\nCats-Contract: 1\r\n",
		"Cats_Contract: 1\r\n", "X-Cats-Contract: 1\r\n", "Contract: 1\r\n", "Trailer: Cats-Contract\r\n", "Cookie: Cats-Contract=1\r\n", "Connection: Cats-Contract\r\n",
		"Origin: https://elsewhere.example\r\nReferer: https://elsewhere.example/\r\nSec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: no-cors\r\nContent-Type: text/plain\r\nUser-Agent: Mozilla/5.0\r\n",
		"Metadata-Flavor: Google\r\nX-Forwarded-For: 127.0.0.1\r\n",
	} {
		for _, c := range [][2]string{{"PUT", "/v1/picture?user=victim"}, {"DELETE", "/v1/picture?user=victim"}, {"GET", "/v1/link?user=victim"}, {"GET", "/v1/ready"}, {"GET", "/v1/link?user=victim&Cats-Contract=1"}} {
			body := map[bool]string{true: small}[c[0] == "PUT"]
			if a := h.say(t, call(c[0], c[1], header, body)); a.StatusCode != 403 || fieldOf(a, "code") != nil {
				t.Errorf("%s %s with %q: %d %s; want a plain 403", c[0], c[1], header, a.StatusCode, a.Body)
			}
		}
	}
	// A page in a browser has to ask whether it may send the header, and is not told so.
	preflight := h.say(t, call("OPTIONS", "/v1/picture?user=victim", "Origin: https://elsewhere.example\r\nAccess-Control-Request-Method: DELETE\r\nAccess-Control-Request-Headers: cats-contract\r\n", ""))
	if preflight.StatusCode != 403 || preflight.Header.Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("a preflight: %d %v", preflight.StatusCode, preflight.Header)
	}
	// Nobody asks for its body.
	conn := h.dial(t)
	_, _ = io.WriteString(conn, call("PUT", "/v1/picture?user=victim", "Expect: 100-continue\r\nContent-Length: 100\r\n", ""))
	if a := h.hear(t, "a forged request that waits", bufio.NewReader(conn)); a.StatusCode != 403 {
		t.Errorf("a forged request that waits to be asked: %d", a.StatusCode)
	}
	if n := h.requests() - before; n != 0 {
		t.Errorf("storage was asked %d times", n)
	}
}

// garbage is no HTTP, or not what anyone would send.
func (h *hostile) garbage(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 5))
	many := func(n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, "x%d: y\r\n", i)
		}
		return b.String()
	}
	raws := []string{
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00", "\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03" + strings.Repeat("\x00", 160), "GET /\r\n", "GET /v1/link?user=victim\r\n\r\n",
		"\x00", "\r\n\r\n\r\n", "\n", " GET / HTTP/1.1\r\n\r\n", "GET / HTTP/1.1\r\n: x\r\n\r\n", "GET / HTTP/1.1\r\nHost: localhost\r\n x\r\n\r\n", "GET / HTTP/1.1\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "GET / HTTP/9.9\r\nHost: localhost\r\n\r\n", "GET / HTTP/1.1x\r\nHost: localhost\r\n\r\n",
		"GET /v1/link?user=victim HTTP/1.0\r\n" + known + "\r\n", "OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", "SSH-2.0-x\r\n", "EHLO x\r\n", "*1\r\n$4\r\nPING\r\n",
		call("GET", "/v1/link?user=victim", known+"X: "+strings.Repeat("x", 64<<10)+"\r\n", ""), call("GET", "/v1/link?user="+strings.Repeat("x", 64<<10), known, ""), call("GET", "/v1/link?"+strings.Repeat("a&", 8000), known, ""),
		call(strings.Repeat("X", 64<<10), "/v1/link", known, ""), call("GET", "/v1/link?user=victim", known+many(10_000), ""), call("GET", "/v1/link?user=victim", known+many(1200), ""), call("GET", "/v1/link?user=victim", known+strings.Repeat("\t", 70_000), ""),
	}
	for range 30 {
		b := make([]byte, 1+r.IntN(4<<10))
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		raws = append(raws, string(b))
	}
	var wg sync.WaitGroup
	for _, raw := range raws {
		wg.Go(func() { h.all(t, raw) })
	}
	wg.Wait()
}

// all sends raw bytes and no more, and hears all that comes back until the end.
func (h *hostile) all(t *testing.T, raw string) (answers int) {
	conn := h.dial(t)
	defer func() { _ = conn.Close() }()
	go func() {
		_, _ = io.WriteString(conn, raw) // it may well be cut off amid that
		_ = conn.CloseWrite()
	}()
	in := bufio.NewReader(conn)
	for h.hear(t, fmt.Sprintf("%.300q", raw), in).StatusCode != 0 {
		answers++
	}
	return answers
}

// mutations are good calls with something wrong somewhere, the same each time.
func (h *hostile) mutations(t *testing.T, small string) {
	const many, workers = 1600, 8
	pieces := []string{"\r\n", "\n", "\x00", "%00", "%2f", "..", "\\", " ", "\t", ":", "&user=victim2", "?", "#", ";", "Content-Length: 0\r\n", "Transfer-Encoding: chunked\r\n", "Expect: 100-continue\r\n", "\r\n\r\n", "HTTP/1.1", "-1", "99999999999999999999", "\xff", "é", "GET /v1/link?user=mutant HTTP/1.1\r\n"}
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(7, uint64(w)))
			answers := 0
			for i := range many / workers {
				user := fmt.Sprintf("mutant%d", w)
				raw := []byte([]string{
					call("PUT", "/v1/picture?user="+user+"&size=4096&if_none_match=*&md5="+strings.Repeat("00", 16), known, small), call("PUT", "/v1/picture?user="+user, known+"Transfer-Encoding: chunked\r\n", "1000\r\n"+small+"\r\n0\r\n\r\n"),
					call("GET", "/v1/link?user="+user+"&ttl_seconds=60&download=a.png", known, ""), call("DELETE", "/v1/picture?user="+user, known+"X-Request-Id: a\r\n", ""), call("GET", "/v1/ready", known, ""),
				}[i%5])
				head := bytes.Index(raw, []byte("\r\n\r\n")) + 4
				for range 1 + r.IntN(3) {
					at := r.IntN(min(len(raw), head+20))
					switch r.IntN(4) {
					case 0:
						raw[at] = byte(r.Uint32())
					case 1:
						raw = slices.Delete(raw, at, min(len(raw), at+1+r.IntN(8)))
					case 2:
						raw = slices.Insert(raw, at, raw[at:min(len(raw), at+1+r.IntN(40))]...)
					case 3:
						raw = slices.Insert(raw, at, []byte(pieces[r.IntN(len(pieces))])...)
					}
				}
				// The victim is nobody's mutant: a changed name is one of theirs still, or none.
				if !bytes.Contains(raw, []byte("user="+user)) && bytes.Contains(raw, []byte("PUT")) {
					continue
				}
				answers += h.all(t, string(raw))
			}
			if answers < many/workers/2 {
				t.Errorf("worker %d: %d answers only: this tests nothing", w, answers)
			}
		})
	}
	wg.Wait()
}

// theMost is what there is to get: for any name, and no more than this of it.
func (h *hostile) theMost(t *testing.T, stored func(string)) {
	full := string(harness.Picture(1<<20, 'm'))
	for _, row := range []struct {
		may    string
		raw    string
		status int
	}{
		{"store a picture of up to MAX_PICTURE_SIZE under any name", call("PUT", "/v1/picture?user=anyone", known, full), 200},
		{"replace anybody's", call("PUT", "/v1/picture?user=anyone", known, full), 200},
		{"look whether there is one, its size, type, MD5 and tag", call("GET", "/v1/link?user=anyone", known, ""), 200},
		{"a link to anybody's picture for LINK_MAX_TTL", call("GET", "/v1/link?user=anyone&ttl_seconds=86400", known, ""), 200},
		{"one that saves it under any name", call("GET", "/v1/link?user=anyone&download=invoice.exe", known, ""), 200},
		{"delete anybody's, its snapshots included", call("DELETE", "/v1/picture?user=anyone", known, ""), 204},
		{"a ticket to send a picture of up to MAX_DIRECT_UPLOAD_SIZE", call("POST", "/v1/uploads?user=anyone&size=1073741824", known, ""), 200},
		{"know what can be asked", call("GET", "/v1/about", known, ""), 200},
		{"know whether the signer is ready", call("GET", "/v1/ready", known, ""), 204},
		{"not: a byte more", call("PUT", "/v1/picture?user=anyone", known, full+"x"), 413},
		{"not: a ticket for a byte more", call("POST", "/v1/uploads?user=anyone&size=1073741825", known, ""), 413},
		{"not: what nobody has sent", call("POST", "/v1/commit?user=anyone&upload_id=9999999999-1-A", known, ""), 404},
		{"not: another type than a picture's", call("PUT", "/v1/picture?user=anyone", known, "<svg/>"), 415},
		{"not: a link for a second longer", call("GET", "/v1/link?user=anyone&ttl_seconds=86401", known, ""), 422},
		{"not: a list of names", call("GET", "/v1/picture", known, ""), 405},
	} {
		a := h.say(t, row.raw)
		t.Logf("%-60s %d", row.may, a.StatusCode)
		if a.StatusCode != row.status {
			t.Errorf("%s: %d %s; want %d", row.may, a.StatusCode, a.Body, row.status)
		}
	}
	if a := h.say(t, call("PUT", "/v1/picture?user=anyone", known, full)); a.StatusCode != 200 {
		t.Errorf("another put: %d", a.StatusCode)
	}
	stored("anyone")
}
