package client

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"testing"
)

func TestAddressesKeepTokensAndPicturesWhereTheyBelong(t *testing.T) {
	const token, storage = "secret-token", "https://acct.blob.core.windows.net"
	table, err := os.ReadFile("testdata/addresses.txt")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(table)) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		words := append(strings.SplitN(line, " ", 3), "")
		purpose, want := words[0], words[1]
		address, err := strconv.Unquote(`"` + words[2] + `"`)
		if err != nil {
			t.Fatal(err)
		}
		ok := false
		switch purpose {
		case "base":
			_, err = New(address, Options{Token: token})
			_, plain := New(address, Options{Token: token, AllowPlainHTTP: true})
			ok = errors.Is(err, ErrPlainHTTP) == (want == "plain") && (plain == nil) == (want != "invalid")
		case "picture":
			_, err = parseURL("picture_url", address)
			ok = err == nil || strings.Contains(err.Error(), want)
		case "upload":
			err = checkOrigin(address, storage)
			ok = checkOrigin(address, "") != nil && checkOrigin("x:y", address) != nil
		}
		if !ok || (err == nil) != (want == "ok") || err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", line, err)
		}
	}
	if err := checkOrigin("http://[::1]/x", "http://[::1]:80/base"); err != nil {
		t.Error(err)
	}
	for _, token := range []string{"two words", "a\nb", "ü", "\x7f"} {
		if _, err := New("https://cats.example", Options{Token: token}); err == nil {
			t.Errorf("the token %q is accepted", token)
		}
	}
}
