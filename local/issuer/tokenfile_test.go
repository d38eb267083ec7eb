package issuer

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"
)

func TestTokenFileRotatesBeforeTheExpiry(t *testing.T) {
	cluster, err := NewCluster("https://cluster.example")
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		federated := Federated{Subject: "system:serviceaccount:cats:cats-api", Audience: Audience, Lifetime: time.Minute}
		file, err := NewTokenFile(filepath.Join(t.TempDir(), "token"), cluster, federated)
		if err != nil {
			t.Fatal(err)
		}
		go file.Run(t.Context(), slog.New(slog.DiscardHandler))
		var tokens []string
		for _, wait := range []time.Duration{0, 47 * time.Second, 2 * time.Second} { // 80 % of the lifetime are 48 s
			time.Sleep(wait)
			synctest.Wait()
			text, err := os.ReadFile(file.Path())
			info, statErr := os.Stat(file.Path())
			if err != nil || statErr != nil || info.Mode().Perm() != 0o600 {
				t.Fatalf("%v, %v, %v; want mode 0600", err, statErr, info)
			}
			tokens = append(tokens, string(text))
		}
		if tokens[1] != tokens[0] || tokens[2] == tokens[0] {
			t.Errorf("the tokens are %q", tokens)
		}
	})
}
