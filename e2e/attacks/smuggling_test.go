package attacks

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

// What somebody on the way may take for one request, and the frontend for two: behind
// each of these comes a DELETE. It must never be taken for a request, except where
// there are two requests whoever reads them, which is said.
func TestNothingIsHiddenBehindARequest(t *testing.T) {
	t.Parallel()
	sys := harness.Start(t, stack.SystemOptions{FrontendEnv: map[string]string{"STALL_TIMEOUT": "1s"}})
	const legitimate = true
	const picture = "\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR and so forth" // as far as its first bytes go
	const chunked, length = "Transfer-Encoding: chunked\r\n", "Content-Length: 29\r\n"
	if len(picture) != 29 {
		t.Fatalf("the picture has %d bytes", len(picture))
	}
	chunks := fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(picture), picture)
	put := func(header, body string) string {
		return "PUT /cat/a HTTP/1.1\r\nHost: localhost\r\n" + header + "\r\n" + body
	}
	get := func(header string) string { return "GET /service HTTP/1.1\r\nHost: localhost\r\n" + header + "\r\n" }
	covers := func(body string) string { return fmt.Sprintf("Content-Length: %d\r\n", len(body)) }
	type shape struct {
		raw    string // before the DELETE
		second bool   // the DELETE is a request of its own
	}
	// DELETE stands for the request that comes behind, wherever it is in a shape.
	shapes := map[string]shape{
		"a request":                       {put(length, picture), legitimate},
		"CL.TE, the length beyond chunks": {put(covers(chunks+"DELETE")+chunked, chunks), false},
		"CL.TE, the length that of it":    {put(covers(chunks)+chunked, chunks), false},
		"CL.TE, the length short":         {put("Content-Length: 4\r\n"+chunked, chunks), false},
		"CL.TE, no chunks at all":         {put("Content-Length: 6\r\n"+chunked, "0\r\n\r\n"), false},
		"TE.CL":                           {put(chunked+"Content-Length: 4\r\n", chunks), false},
		"TE.CL, nothing":                  {put(chunked+"Content-Length: 0\r\n", chunks), false},
		"GET with chunks":                 {get(chunked) + "0\r\n\r\n", false},
		"GET with chunks and a length":    {get(chunked+"Content-Length: 5\r\n") + "0\r\n\r\n", false},
		"GET with a length":               {get("Content-Length: 60\r\n"), false},
		"DELETE of another with a body":   {"DELETE /cat/nobody HTTP/1.1\r\nHost: localhost\r\nContent-Length: 60\r\n\r\n", false},
		"chunks alone":                    {put(chunked, chunks), false},

		"two lengths":                    {put("Content-Length: 29\r\nContent-Length: 200\r\n", picture), false},
		"two lengths, the other way":     {put("Content-Length: 200\r\nContent-Length: 29\r\n", picture), false},
		"two lengths in a list":          {put("Content-Length: 29, 200\r\n", picture), false},
		"the same length twice":          {put(length+length, picture), legitimate}, // RFC 9110 section 8.6
		"the same length twice, a list":  {put("Content-Length: 29, 29\r\n", picture), false},
		"a length with a sign":           {put("Content-Length: +29\r\n", picture), false},
		"a length below zero":            {put("Content-Length: -29\r\n", picture), false},
		"a length in hex":                {put("Content-Length: 0x1d\r\n", picture), false},
		"a length with a line":           {put("Content-Length: 2_9\r\n", picture), false},
		"a length with a NUL":            {put("Content-Length: 29\x00\r\n", picture), false},
		"a length with more behind":      {put("Content-Length: 29 0\r\n", picture), false},
		"an empty length":                {put("Content-Length:\r\n", picture), false},
		"an enormous length":             {put("Content-Length: 18446744073709551645\r\n", picture), false},
		"a space before the colon":       {put("Content-Length : 29\r\n", picture), false},
		"a folded length":                {put("Content-Length:\r\n 29\r\n", picture), legitimate}, // a fold is a space, RFC 9112 section 5.2
		"a length in another's fold":     {put("X: x\r\n Content-Length: 29\r\n", picture), false},
		"a length named hop by hop":      {put(length+"Connection: Content-Length\r\n", picture), legitimate},                    // it is for the way, and ends where it says
		"lines without CR":               {"PUT /cat/a HTTP/1.1\nHost: localhost\nContent-Length: 29\n\n" + picture, legitimate}, // RFC 9112 section 2.2
		"a CR amid a line":               {put("X: x\rContent-Length: 29\r\n", picture), false},
		"a NUL in a name":                {put("X\x00: x\r\n"+length, picture), false},
		"a NUL in a value":               {put("X: \x00\r\n"+length, picture), false},
		"a NUL in the target":            {"PUT /cat/a\x00b HTTP/1.1\r\nHost: localhost\r\n" + length + "\r\n" + picture, false},
		"a line without a colon":         {put("Content-Length 29\r\n"+length, picture), false},
		"a header that begins in spaces": {"PUT /cat/a HTTP/1.1\r\n Host: localhost\r\n" + length + "\r\n" + picture, false},

		"a chunk with an extension":       {put(chunked, fmt.Sprintf("%x;a=b;c=\"d\"\r\n%s\r\n0;e\r\n\r\n", len(picture), picture)), false},
		"a chunk with a long extension":   {put(chunked, fmt.Sprintf("%x;%s\r\n%s\r\n0\r\n\r\n", len(picture), strings.Repeat("a", 5000), picture)), false},
		"an extension with a bare LF":     {put(chunked, fmt.Sprintf("%x;a\nb\r\n%s\r\n0\r\n\r\n", len(picture), picture)), false},
		"a chunk's size with 0x":          {put(chunked, fmt.Sprintf("0x%x\r\n%s\r\n0\r\n\r\n", len(picture), picture)), false},
		"a chunk's size with a sign":      {put(chunked, fmt.Sprintf("+%x\r\n%s\r\n0\r\n\r\n", len(picture), picture)), false},
		"a chunk's size below zero":       {put(chunked, fmt.Sprintf("-%x\r\n%s\r\n0\r\n\r\n", len(picture), picture)), false},
		"a chunk's size with spaces":      {put(chunked, fmt.Sprintf(" %x  \r\n%s\r\n0\r\n\r\n", len(picture), picture)), false},
		"a chunk's size that overflows":   {put(chunked, fmt.Sprintf("1000000000000001d\r\n%s\r\n0\r\n\r\n", picture)), false},
		"a chunk's size of many zeros":    {put(chunked, fmt.Sprintf("%040x\r\n%s\r\n0\r\n\r\n", len(picture), picture)), false},
		"a chunk's size with a bare LF":   {put(chunked, fmt.Sprintf("%x\n%s\r\n0\r\n\r\n", len(picture), picture)), false},
		"a chunk that ends in a bare LF":  {put(chunked, fmt.Sprintf("%x\r\n%s\n0\n\n", len(picture), picture)), false},
		"a chunk with no end":             {put(chunked, fmt.Sprintf("%x\r\n%s0\r\n\r\n", len(picture), picture)), false},
		"a trailer that is a length":      {put(chunked, fmt.Sprintf("%x\r\n%s\r\n0\r\nContent-Length: 0\r\n\r\n", len(picture), picture)), false},
		"a trailer that is an encoding":   {put(chunked+"Trailer: Transfer-Encoding\r\n", fmt.Sprintf("%x\r\n%s\r\n0\r\n%s\r\n", len(picture), picture, chunked)), false},
		"a form in chunks with a length":  {"POST /cat/a HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\nContent-Length: 5\r\n" + chunked + "\r\n5\r\n--b--\r\n0\r\n\r\n", false},
		"refused by its name, in chunks":  {"PUT /cat/%00 HTTP/1.1\r\nHost: localhost\r\n" + chunked + "\r\n0\r\n\r\n", false},
		"no such path, in chunks":         {"PUT /dog HTTP/1.1\r\nHost: localhost\r\n" + chunked + "\r\n0\r\n\r\n", false},
		"of another origin, in chunks":    {put("Origin: https://evil.example\r\n"+chunked, "0\r\n\r\n"), false},
		"a target too long, in chunks":    {"PUT /cat/" + strings.Repeat("a", 5000) + " HTTP/1.1\r\nHost: localhost\r\n" + chunked + "\r\n0\r\n\r\n", false},
		"asked before it is sent":         {put("Expect: 100-continue\r\n"+chunked, chunks), false},
		"an expectation nobody knows":     {put("Expect: 200-ok\r\n"+length, picture), false},
		"HTTP/1.0":                        {"PUT /cat/a HTTP/1.0\r\n" + length + "\r\n" + picture, false},
		"HTTP/1.0 that wants to go on":    {"PUT /cat/a HTTP/1.0\r\nConnection: keep-alive\r\n" + length + "\r\n" + picture, false},
		"HTTP/1.0 with chunks":            {"PUT /cat/a HTTP/1.0\r\nConnection: keep-alive\r\n" + chunked + "\r\n" + chunks, false},
		"HTTP/1.0 with chunks, a length":  {"PUT /cat/a HTTP/1.0\r\nConnection: keep-alive\r\n" + chunked + length + "\r\n" + picture, false},
		"HTTP/1.0, GET that wants more":   {"GET /service HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", false},
		"HTTP/1.2":                        {"GET /service HTTP/1.2\r\nHost: localhost\r\n\r\n", false},
		"HTTP/2":                          {"GET /service HTTP/2.0\r\nHost: localhost\r\n\r\n", false},
		"HTTP/0.9":                        {"GET /service\r\n", false},
		"a version that is none":          {"GET /service HTTP/1.1x\r\nHost: localhost\r\n\r\n", false},
		"HTTP/2's preface":                {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", false},
		"HTTP/2's preface, no more":       {"PRI * HTTP/2.0\r\n\r\n", false},
		"an upgrade to h2c":               {get("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"), legitimate}, // it stays HTTP/1.1
		"an upgrade to h2c, and a body":   {put("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"+chunked, chunks), false},
		"an upgrade to websocket":         {get("Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"), legitimate}, // it stays HTTP/1.1
		"a tunnel":                        {"CONNECT x:8080 HTTP/1.1\r\nHost: x:8080\r\n\r\n", false},
		"a tunnel with a path":            {"CONNECT /service HTTP/1.1\r\nHost: localhost\r\n\r\n", false},
		"the absolute form":               {"PUT http://localhost/cat/a HTTP/1.1\r\nHost: localhost\r\n" + length + "\r\n" + picture, legitimate}, // RFC 9112 section 3.2.2
		"the absolute form, another host": {"PUT http://127.0.0.1/cat/a HTTP/1.1\r\nHost: localhost\r\n" + length + "\r\n" + picture, legitimate}, // its own goes before Host
		"the authority form":              {"PUT x:8080 HTTP/1.1\r\nHost: localhost\r\n" + length + "\r\n" + picture, false},                      // 404, and nothing was read
		"the authority form, without one": {"GET x:8080 HTTP/1.1\r\nHost: localhost\r\n\r\n", legitimate},                                         // 404, of a request that is whole
		"the asterisk form":               {"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", legitimate},                                          // 404, of a request that is whole
		"TRACE":                           {"TRACE /service HTTP/1.1\r\nHost: localhost\r\nX: x\r\n\r\n", legitimate},                             // 405, of a request that is whole
		"no host":                         {"PUT /cat/a HTTP/1.1\r\n" + length + "\r\n" + picture, false},
		"two hosts":                       {"PUT /cat/a HTTP/1.1\r\nHost: localhost\r\nHost: y\r\n" + length + "\r\n" + picture, false},
		"a host that is none":             {"PUT /cat/a HTTP/1.1\r\nHost: x y\r\n" + length + "\r\n" + picture, false},
		"spaces in the request line":      {"PUT  /cat/a  HTTP/1.1\r\nHost: localhost\r\n" + length + "\r\n" + picture, false},
		"a method with a tab":             {"PUT\t/cat/a HTTP/1.1\r\nHost: localhost\r\n" + length + "\r\n" + picture, false},
		"it says that it is the last":     {get("Connection: close\r\n"), false},
	}
	// An encoding that is none, whoever reads it, leaves the length, and what is behind
	// that is a request; of an encoding that somebody might take for chunks, nothing is.
	for name, field := range map[string]string{
		"chunked in another's fold": "X: x\r\n Transfer-Encoding: chunked",
		"chunked with another name": "Transfer_Encoding: chunked",
		"chunked for others":        "TE: chunked",
	} {
		field += "\r\n"
		shapes[name+", a length before"] = shape{put(covers(chunks)+field, chunks), legitimate}
		shapes[name+", a length beyond"] = shape{put(field+covers(chunks+"DELETE"), chunks+"DELETE") + get("Connection: close\r\n"), false}
		shapes[name+", no length"] = shape{put(field, chunks), false}
	}
	for name, field := range map[string]string{
		"an encoding nobody knows":       "Transfer-Encoding: xchunked",
		"chunked in capitals":            "TRANSFER-ENCODING: CHUNKED",
		"chunked behind a tab":           "Transfer-Encoding:\tchunked",
		"chunked behind a vertical tab":  "Transfer-Encoding:\x0bchunked",
		"a space before chunked's colon": "Transfer-Encoding : chunked",
		"a line before chunked's colon":  "Transfer-Encoding\r\n: chunked",
		"chunked twice":                  "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
		"chunked and identity":           "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
		"identity and chunked":           "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked",
		"chunked, identity":              "Transfer-Encoding: chunked, identity",
		"gzip, chunked":                  "Transfer-Encoding: gzip, chunked",
		"identity":                       "Transfer-Encoding: identity",
		"chunked in quotes":              `Transfer-Encoding: "chunked"`,
		"chunked with an argument":       "Transfer-Encoding: chunked;x=1",
		"chunked and a comma":            "Transfer-Encoding: chunked,",
		"chunked in a fold":              "Transfer-Encoding:\r\n chunked",
		"chunked behind a bare LF":       "X: x\nTransfer-Encoding: chunked",
		"chunked behind a bare CR":       "X: x\rTransfer-Encoding: chunked",
		"chunked with a NUL":             "Transfer-Encoding: chunked\x00",
		"chunked and a control":          "Transfer-Encoding: chunked\x7f",
		"no encoding":                    "Transfer-Encoding:",
	} {
		field += "\r\n"
		shapes[name+", a length beyond"] = shape{put(field+covers(chunks+"DELETE"), chunks), false}
		shapes[name+", a length before"] = shape{put(covers(chunks)+field, chunks), false}
		shapes[name+", no length"] = shape{put(field, chunks), false}
	}
	var wg sync.WaitGroup
	turn := make(chan struct{}, 16)
	for i, name := range slices.Sorted(maps.Keys(shapes)) {
		wg.Go(func() {
			turn <- struct{}{}
			defer func() { <-turn }()
			victim := fmt.Sprintf("victim-%d", i)
			harness.Do(t, "PUT", sys.URL+"/cat/"+victim, "", harness.Cat)
			hidden := "DELETE /cat/" + victim + " HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
			s := shapes[name]
			raw := strings.ReplaceAll(s.raw, fmt.Sprintf("Content-Length: %d\r\n", len(chunks+"DELETE")), covers(chunks+hidden)) + hidden
			raw = strings.ReplaceAll(raw, chunks+"DELETE", chunks+hidden)
			got := harness.ReadStatuses(t, sys, name, raw)
			gone := harness.Do(t, "GET", sys.URL+"/cat/"+victim, "", nil).StatusCode != 200
			if gone != s.second {
				t.Errorf("%s: answered %q, the other picture is gone: %v; want %v", name, got, gone, s.second)
			}
			if !gone && len(got) > 1 && !strings.HasSuffix(s.raw, "Connection: close\r\n\r\n") && !strings.HasPrefix(got[len(got)-1], "400") && !strings.HasPrefix(got[0], "100") {
				t.Errorf("%s: answered %q; want one answer, or 400 for what came behind", name, got)
			}
		})
	}
	wg.Wait()
	t.Logf("%d shapes", len(shapes))
}
