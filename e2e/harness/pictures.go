package harness

import (
	"bytes"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"cats.example/local/stack"
)

// Form returns a form with content as the field "file".
func Form(t *testing.T, content []byte) (contentType string, body []byte) {
	t.Helper()
	part := FormField("name=\"file\"; filename=\"cat.png\"\r\nContent-Type: image/png", string(content))
	return FormType, []byte(part + LastBoundary)
}

// Link returns a signed URL for the picture of user. query is "" or one such as "?ttl=1m".
func Link(t *testing.T, sys *stack.System, user, query string) (picture string, expires time.Time) {
	t.Helper()
	a := Do(t, http.MethodGet, sys.URL+"/cat/"+user+query, "", nil).Want(t, http.StatusOK)
	picture, _ = a.Field(t, "picture_url").(string)
	at, _ := a.Field(t, "expires_at").(string)
	expires, err := time.Parse(time.RFC3339, at)
	if err != nil {
		t.Fatal(err)
	}
	return picture, expires
}

// BlobNames returns the sorted names of the blobs of users, or of all blobs in the system's container if there are no users.
func BlobNames(t *testing.T, sys *stack.System, users ...string) []string {
	t.Helper()
	blobs, err := sys.Blobs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, b := range blobs {
		if user, _, _ := strings.Cut(b.Name, "/"); len(users) == 0 || slices.Contains(users, user) {
			all = append(all, b.Name)
		}
	}
	slices.Sort(all)
	return all
}

// SendAll sends a GET, a PUT of small and a PUT of large for user concurrently, and returns the responses in this order.
func SendAll(t *testing.T, sys *stack.System, user string, small, large []byte) (got [3]Response) {
	t.Helper()
	var wg sync.WaitGroup
	at := "/cat/" + user
	for i, k := range []Call{{Method: "GET", Target: at}, {Method: "PUT", Target: at, Body: small}, {Method: "PUT", Target: at, Body: large}} {
		wg.Go(func() { got[i] = k.Do(t, sys) })
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	return got
}

// Put stores content as the picture of user with the public API.
func Put(t *testing.T, sys *stack.System, user string, content []byte) {
	t.Helper()
	Do(t, http.MethodPut, sys.URL+"/cat/"+user, "", content).Want(t, http.StatusOK)
}

// Served returns the picture of user, fetched by its signed URL.
func Served(t *testing.T, sys *stack.System, user string) []byte {
	t.Helper()
	url, _ := Link(t, sys, user, "")
	return Do(t, http.MethodGet, url, "", nil).Want(t, http.StatusOK).Body
}

// WantPicture fails the test unless content is the picture of user.
func WantPicture(t *testing.T, sys *stack.System, user string, content []byte) {
	t.Helper()
	if got := Served(t, sys, user); !bytes.Equal(got, content) {
		t.Errorf("the picture of %s is another", user)
	}
}
