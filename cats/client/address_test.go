package client

import (
	"errors"
	"strings"
	"testing"
)

func TestNewProtectsToken(t *testing.T) {
	const token, any = "secret-token", "http://10.0.0.1"
	for base, want := range map[string]error{
		"http://localhost:8080": nil, "http://LocalHost": nil, "http://localhost.": nil, "http://a.cats.localhost.": nil, "https://cats.example": nil,
		"http://127.255.0.9": nil, "http://[::1]:80": nil, "http://[::ffff:127.0.0.1]": nil,
		"http://0.0.0.0": ErrPlainHTTP, "http://[::]": ErrPlainHTTP, any: ErrPlainHTTP, "http://[::ffff:10.0.0.1]": ErrPlainHTTP, "http://[fe80::1]": ErrPlainHTTP,
		"http://localhost.example": ErrPlainHTTP, "http://notlocalhost": ErrPlainHTTP, "http://127.0.0.1.example": ErrPlainHTTP,
		"http://127.1": ErrPlainHTTP, "http://2130706433": ErrPlainHTTP, "HTTP://cats.example": ErrPlainHTTP,
	} {
		if _, err := New(base, Options{Token: token}); !errors.Is(err, want) || err != nil && strings.Contains(err.Error(), token) {
			t.Errorf("%s: %v; want %v", base, err, want)
		}
		if _, err := New(base, Options{Token: token, AllowPlainHTTP: true}); err != nil {
			t.Errorf("%s, plain HTTP allowed: %v", base, err)
		}
	}
	for _, token := range []string{"two words", "a\nb", "ü", "\x7f"} {
		if _, err := New("https://cats.example", Options{Token: token}); err == nil {
			t.Errorf("the token %q is accepted", token)
		}
	}
	for _, base := range []string{"", "localhost", "ftp://a.example", "http://", "http://user@a.example", "http://a.example?q=1", "http://a.example#f", "http://a b"} {
		if _, err := New(base, Options{}); err == nil {
			t.Errorf("the base URL %q is accepted", base)
		}
	}
}

func TestParseURLRejectsOtherSchemes(t *testing.T) {
	for text, want := range map[string]string{
		"https://a.example/c?sig=1": "", "http://127.0.0.1:8082/x": "", "HTTPS://A.example": "", "https://[::1]:1/": "",
		"javascript:alert(1)": `"javascript"`, "data:text/html,x": `"data"`, "file:///etc/passwd": `"file"`, "ftp://a.example/x": `"ftp"`,
		"JavaScript://a.example/%0aalert(1)": `"javascript"`, "ssh://a.example": `"ssh"`, "//a.example/x": `""`, "/cats/x": `""`, "": `""`, "a.example": `""`,
		"https://user@a.example/": "user name", "https://user:pw@a.example/": "user name", "http://:pw@a.example/": "user name",
		"https:///x": "no host", "http:x": "no host", "https://:443/": "no host",
		"https://a.example/\x1b[31m": "no URL", "https://a b/": "no URL", "https://a.example:port/": "no URL",
	} {
		_, err := parseURL("picture_url", text)
		if (err == nil) != (want == "") || err != nil && (!strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "pw")) {
			t.Errorf("%q: %v; want an error with %s, without the password", text, err, want)
		}
	}
}

func TestCheckOriginComparesSchemeHostAndPort(t *testing.T) {
	const storage = "https://acct.blob.core.windows.net"
	for upload, storage := range map[string]string{
		storage + "/cats/x?sig=1": storage, "https://ACCT.blob.core.windows.net:443/x": storage,
		"http://127.0.0.1:8082/x": "http://127.0.0.1:8082/base", "http://[::1]/x": "http://[::1]:80",
	} {
		if err := checkOrigin(upload, storage); err != nil || checkOrigin(upload, "") == nil {
			t.Errorf("%s at %s: %v", upload, storage, err)
		}
	}
	for _, upload := range []string{
		"http://acct.blob.core.windows.net/x", "https://acct.blob.core.windows.net:8443/x", "https://acct.blob.core.windows.net.evil/x",
		"https://evil/acct.blob.core.windows.net", "https://acct.blob.core.windows.net@evil/x", "https://user@acct.blob.core.windows.net/x",
		"https://evil#.acct.blob.core.windows.net/", `https://evil\@acct.blob.core.windows.net/`, "ftp://acct.blob.core.windows.net/x",
		"/cats/x?sig=1", "", "x:y",
	} {
		if checkOrigin(upload, storage) == nil || checkOrigin("x:y", upload) == nil {
			t.Errorf("%s at %s is accepted", upload, storage)
		}
	}
}
