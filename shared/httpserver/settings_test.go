package httpserver

import (
	"maps"
	"strings"
	"testing"

	"cats.example/shared/config"
)

// hosts says of Host header fields whether they name no host of the public DNS.
var hosts = map[string]bool{
	"": true, "127.0.0.1": true, "127.0.0.1:8080": true, "10.1.2.3:80": true, "[::1]": true, "[::1]:8080": true, "[fe80::1%25eth0]:80": true,
	"localhost": true, "LOCALHOST:8080": true, "localhost.": true, "cats.blob.localhost:1": true,

	"evil.example": false, "evil.example:8080": false, "evil.example.": false, "127.0.0.1.evil.example": false, "localhost.evil.example": false,
	"evil-localhost": false, "localhost.localdomain": false, "notlocalhost:80": false, "2130706433": false, "0x7f.0.0.1": false, "127.1": false,
	"127.0.0.1:80:80": false, "evil.example:127.0.0.1": false, "user@evil.example": false, "localhost@evil.example": false, "evil.example#localhost": false,
	"evil.example/.localhost": false, "evil.example#.localhost": false, `evil.example\.localhost`: false, ".localhost": false, "[::1].evil.example": false, "[evil.example]": false, "１２７.0.0.1": false,
}

func TestLocalHostAcceptsNoDNSName(t *testing.T) {
	for field, want := range hosts {
		if got := LocalHost(field); got != want {
			t.Errorf("LocalHost(%q) is %t; want %t", field, got, want)
		}
	}
}

func TestHostAllowedMatchesExactly(t *testing.T) {
	var s Settings
	if err := config.Parse(&s, []string{"ALLOWED_HOSTS=Cats.Example.com, other.example."}); err != nil {
		t.Fatal(err)
	}
	fields := map[string]bool{
		"cats.example.com": true, "CATS.example.com:8080": true, "cats.example.com.": true, "other.example": true,
		"example.com": false, "x.cats.example.com": false, "cats.example.com.evil.example": false, "cats-example.com": false,
	}
	maps.Copy(fields, hosts)
	for field, want := range fields {
		if got := s.HostAllowed(field); got != want {
			t.Errorf("HostAllowed(%q) is %t; want %t", field, got, want)
		}
	}
	for _, wrong := range []string{
		"https://cats.example.com", "cats.example.com:443", "*.example.com", "a b", "cats.example.com,,x", "münchen.example",
		"cats.example.com?x", "a%41", "a..b", "..",
	} {
		if err := config.Parse(&s, []string{"ALLOWED_HOSTS=" + wrong}); err == nil {
			t.Errorf("ALLOWED_HOSTS=%s is accepted", wrong)
		}
	}
}

func TestValidateRejectsSettingsOutOfRange(t *testing.T) {
	for _, setting := range []string{
		"", "STALL_TIMEOUT=-1s", "MIN_UPLOAD_RATE=0", "MAX_UPLOADS=0", "CLIENT_SHARE=1.1", "CLIENT_SHARE=-0.1", "CLIENT_SHARE=NaN", "DRAIN_DELAY=-1s", "DRAIN_TIMEOUT=0s",
	} {
		var s Settings
		if err := config.Parse(&s, []string{setting}); err != nil {
			t.Fatal(err)
		}
		name, _, _ := strings.Cut(setting, "=")
		if err := s.Validate(); (err == nil) != (name == "") || err != nil && !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", setting, err)
		}
	}
}
