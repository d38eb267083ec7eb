package issuer

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// readToken returns the claims of the token at path, which must be signed by
// cluster, readable by its owner alone.
func readToken(t *testing.T, cluster *Cluster, path string) jwt.Claims {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, want 0600", info.Mode())
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	token, err := jwt.ParseSigned(string(b), []jose.SignatureAlgorithm{jose.RS256})
	if err != nil {
		t.Fatalf("the file holds %q: %v", b, err)
	}
	var c jwt.Claims
	if err := token.Claims(cluster.key.Public(), &c); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestTokenFileIsRotated(t *testing.T) {
	cluster, _ := newCluster(t)
	dir := t.TempDir()
	f := right()
	f.Lifetime = 300 * time.Millisecond
	file, err := NewTokenFile(filepath.Join(dir, "token"), cluster, f)
	if err != nil {
		t.Fatal(err)
	}
	first := readToken(t, cluster, file.Path())
	go file.Run(t.Context(), slog.New(slog.DiscardHandler))
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		// However often it is looked at, the file holds a whole and valid token.
		if c := readToken(t, cluster, file.Path()); c.ID != first.ID {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("not rotated")
		}
	}
}

func TestTokenFileCanBeWrongAndRightAgain(t *testing.T) {
	cluster, _ := newCluster(t)
	dir := t.TempDir()
	file, err := NewTokenFile(filepath.Join(dir, "token"), cluster, right())
	if err != nil {
		t.Fatal(err)
	}
	wrong := file.Right()
	wrong.Subject = "system:serviceaccount:cats:default"
	if err := file.Set(wrong); err != nil {
		t.Fatal(err)
	}
	if c := readToken(t, cluster, file.Path()); c.Subject != wrong.Subject {
		t.Errorf("subject %q, want %q", c.Subject, wrong.Subject)
	}
	if err := file.Reset(); err != nil {
		t.Fatal(err)
	}
	if c := readToken(t, cluster, file.Path()); c.Subject != testSubject {
		t.Errorf("subject %q, want %q", c.Subject, testSubject)
	}
}
