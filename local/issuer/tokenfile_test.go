package issuer

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// readToken returns the claims of the token in f, which must be signed by c and readable by its owner only.
func readToken(t *testing.T, c *Cluster, f *TokenFile) jwt.Claims {
	t.Helper()
	b, err := os.ReadFile(f.Path())
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(f.Path()); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("%v, %v; want mode 0600", info, err)
	}
	token, err := jwt.ParseSigned(string(b), []jose.SignatureAlgorithm{jose.RS256})
	if err != nil {
		t.Fatalf("the file contains %q: %v", b, err)
	}
	var claims jwt.Claims
	if err := token.Claims(c.key.Public(), &claims); err != nil {
		t.Fatal(err)
	}
	return claims
}

func TestTokenFileRotatesBeforeTheExpiry(t *testing.T) {
	cluster, _ := testCluster()
	synctest.Test(t, func(t *testing.T) {
		file, err := NewTokenFile(filepath.Join(t.TempDir(), "token"), cluster, valid()) // for a minute
		if err != nil {
			t.Fatal(err)
		}
		go file.Run(t.Context(), slog.New(slog.DiscardHandler))
		first := readToken(t, cluster, file)
		time.Sleep(47 * time.Second)
		synctest.Wait()
		if readToken(t, cluster, file).ID != first.ID {
			t.Error("rotated before 80% of the lifetime")
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		second := readToken(t, cluster, file)
		if second.ID == first.ID || !second.Expiry.Time().After(first.Expiry.Time()) {
			t.Errorf("not rotated: %+v, then %+v", first, second)
		}
	})
}

func TestTokenFileSurvivesFailedWrites(t *testing.T) {
	cluster, _ := testCluster()
	file, err := NewTokenFile(filepath.Join(t.TempDir(), "token"), cluster, valid())
	if err != nil {
		t.Fatal(err)
	}
	first := readToken(t, cluster, file)
	if err := os.Mkdir(file.Path()+".new", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := file.Reset(); err == nil {
		t.Error("no error")
	}
	if got := readToken(t, cluster, file); got.ID != first.ID {
		t.Error("the token was replaced")
	}
}
