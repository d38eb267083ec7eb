package main

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestOnThisMachineAcceptsLoopbackOnly(t *testing.T) {
	for host, want := range map[string]bool{
		"localhost": true, "LocalHost": true, "localhost.": true, "cats.localhost": true, "a.b.localhost.": true,
		"127.0.0.1": true, "127.255.0.9": true, "::1": true, "::ffff:127.0.0.1": true,
		"": false, "0.0.0.0": false, "::": false, "10.0.0.1": false, "192.168.1.4": false, "::ffff:10.0.0.1": false, "fe80::1": false,
		"example.com": false, "localhost.example.com": false, "notlocalhost": false, "127.0.0.1.example.com": false, "127.1": false, "2130706433": false,
	} {
		if got := onThisMachine(host); got != want {
			t.Errorf("%q: %v; want %v", host, got, want)
		}
	}
}

func TestParseLinkAcceptsHTTPOnly(t *testing.T) {
	for link, want := range map[string]string{
		"https://a.example/c?sig=1": "", "http://127.0.0.1:8082/x": "", "HTTPS://A.example": "", "https://[::1]:1/": "",
		"javascript:alert(1)": `"javascript"`, "data:text/html,x": `"data"`, "file:///etc/passwd": `"file"`, "ftp://a.example/x": `"ftp"`,
		"JavaScript://a.example/%0aalert(1)": `"javascript"`, "ssh://a.example": `"ssh"`, "//a.example/x": `""`, "/cats/x": `""`, "": `""`, "a.example": `""`,
		"https://user@a.example/": "user name", "https://user:pw@a.example/": "user name", "http://:pw@a.example/": "user name",
		"https:///x": "no host", "http:x": "no host", "https://:443/": "no host",
		"https://a.example/\x1b[31m": "no URL", "https://a b/": "no URL", "https://a.example:port/": "no URL",
	} {
		_, err := parseLink("picture_url", link)
		switch {
		case want == "" && err != nil:
			t.Errorf("%q: %v", link, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%q: %v; want an error with %s", link, err, want)
		case err != nil && strings.Contains(err.Error(), "pw"):
			t.Errorf("%q: the error shows the password: %v", link, err)
		}
	}
}

func TestCheckOriginComparesSchemeHostAndPort(t *testing.T) {
	const storage = "https://acct.blob.core.windows.net"
	for _, c := range []struct {
		upload, storage string
		want            bool
	}{
		{storage + "/cats/x?sig=1", storage, true},
		{"https://ACCT.blob.core.windows.net:443/x", storage, true},
		{"http://127.0.0.1:8082/x", "http://127.0.0.1:8082/base", true},
		{"http://[::1]/x", "http://[::1]:80", true},
		{"http://acct.blob.core.windows.net/x", storage, false},
		{"https://acct.blob.core.windows.net:8443/x", storage, false},
		{"https://acct.blob.core.windows.net.evil.example/x", storage, false},
		{"https://evil.example/acct.blob.core.windows.net", storage, false},
		{"https://acct.blob.core.windows.net@evil.example/x", storage, false},
		{"https://user@acct.blob.core.windows.net/x", storage, false},
		{"https://evil.example#.acct.blob.core.windows.net/", storage, false},
		{`https://evil.example\@acct.blob.core.windows.net/`, storage, false},
		{"ftp://acct.blob.core.windows.net/x", storage, false},
		{"/cats/x?sig=1", storage, false},
		{"", storage, false},
		{storage + "/x", "", false},
		{"x:y", "x:y", false},
	} {
		if err := checkOrigin(c.upload, c.storage); (err == nil) != c.want {
			t.Errorf("%s at the storage %s: %v; want accepted %v", c.upload, c.storage, err, c.want)
		}
	}
}

func TestEscapeLeavesNoControlCharacters(t *testing.T) {
	for in, want := range map[string]string{
		"Мурчик 2 👩‍👧 ü \u0301 \"\\":  "Мурчик 2 👩‍👧 ü \u0301 \"\\",
		"\x1b[2J\a\r\n\t\x00":         `\u001b[2J\u0007\u000d\u000a\u0009\u0000`,
		"\x7f\u0080\u009b31m":         `\u007f\u0080\u009b31m`,
		"\u202egnp\u2066\u200f\u061c": `\u202egnp\u2066\u200f\u061c`,
		"\u2028\u2029\ufeff\u200b":    `\u2028\u2029\ufeff\u200b`,
		"\U000e0041\ue000":            `\udb40\udc41\ue000`,
		"a\xffb\xc3\xed\xa0\x80\x9b":  "a\ufffdb\ufffd\ufffd\ufffd\ufffd\ufffd",
	} {
		got := escape(in)
		if got != want {
			t.Errorf("%q: %q; want %q", in, got, want)
		}
		document, err := json.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		var before, after string
		if json.Unmarshal(document, &before) != nil || json.Unmarshal([]byte(escape(string(document))), &after) != nil || after != before {
			t.Errorf("%q: the JSON string %q means another one when it is escaped", in, document)
		}
	}
}

func FuzzEscape(f *testing.F) {
	f.Add("\x1b]0;x\a\u202e\u009b\xff")
	f.Fuzz(func(t *testing.T, s string) {
		got := escape(s)
		if !utf8.ValidString(got) || strings.ContainsFunc(got, func(r rune) bool {
			return r < ' ' || r >= 0x7f && r < 0xa0 || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069
		}) || escape(got) != got {
			t.Errorf("%q: %q", s, got)
		}
	})
}
