package attacks

import (
	"bytes"
	"net/http"
	"testing"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

// rebound are Host header fields of requests that a page sends after DNS rebinding: the DNS names of its own origin.
var rebound = []string{"evil.example", "evil.example:8080", "127.0.0.1.evil.example", "localhost.evil.example:80", "localhost.localdomain", "Evil.Example."}

// reached sends a request with that Host header, as a page of the same origin does.
func reached(t *testing.T, c *http.Client, method, url, host string, body []byte, header ...string) harness.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Host = host
	req.Header.Set("Origin", "http://"+host)
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	req.Header.Set("Sec-Fetch-Site", "same-origin")
	return harness.RoundTrip(t, c, req)
}

func TestRebindingPagesReachNoListener(t *testing.T) {
	t.Parallel()
	sys := harness.StartDirect(t, stack.SystemOptions{})
	harness.Put(t, sys, "x", harness.Cat)
	picture, _ := harness.Link(t, sys, "x", "")
	upload := harness.NewUploadSession(t, sys, "x", int64(len(harness.Cat)))
	account := harness.Stack(t).FrontURL + "/"
	contract := []string{"Cats-Contract", "1"}
	calls := []struct {
		method, url string
		body        []byte
		header      []string
	}{
		{"PUT", sys.URL + "/cat/x", harness.OtherPicture, nil},
		{"POST", sys.URL + "/cat/x/upload?size=1", nil, nil},
		{"POST", sys.URL + "/cat/x/upload/" + upload.ID + "/commit", nil, nil},
		{"DELETE", sys.URL + "/cat/x", nil, nil},
		{"GET", sys.URL + "/cat/x", nil, nil},
		{"GET", sys.URL + "/", nil, nil},
		{"GET", sys.URL + "/nothing", nil, nil},
		{"GET", sys.FrontendOps + "/metrics", nil, nil},
		{"GET", sys.SignerOps + "/metrics", nil, nil},
		{"GET", sys.SignerOps + "/readyz", nil, nil},
		{"PUT", sys.SignerAPI + "/v1/picture?user=x", harness.OtherPicture, contract},
		{"DELETE", sys.SignerAPI + "/v1/picture?user=x", nil, contract},
		{"GET", sys.SignerAPI + "/v1/link?user=x", nil, contract},
		{"POST", sys.SignerAPI + "/v1/uploads?user=x&size=1", nil, contract},
		{"POST", sys.SignerAPI + "/v1/commit?user=x&upload_id=" + upload.ID, nil, contract},
		{"GET", sys.SignerAPI + "/v1/about", nil, contract},
		{"GET", sys.SignerAPI + "/v1/ready", nil, contract},
		{"GET", sys.SignerAPI + "/", nil, nil},
		{"POST", sys.SignerAPI + "/v2/picture", nil, contract},
		{"GET", picture, nil, nil},
		{"PUT", upload.URL, harness.OtherPicture, []string{"X-Ms-Blob-Type", "BlockBlob"}},
		{"GET", account + "?comp=list", nil, nil},
		{"GET", harness.Stack(t).Cluster.URL() + "/.well-known/openid-configuration", nil, nil},
	}
	for _, c := range calls {
		for _, host := range rebound {
			if a := reached(t, harness.Stack(t).Client(), c.method, c.url, host, c.body, c.header...); a.StatusCode != http.StatusMisdirectedRequest {
				t.Errorf("%s %s with Host %s: %d %.100s; want 421", c.method, c.url, host, a.StatusCode, a.Body)
			}
		}
	}
	if got := harness.Served(t, sys, "x"); !bytes.Equal(got, harness.Cat) {
		t.Error("the picture was changed")
	}
	for _, host := range []string{"localhost:8080", "127.0.0.1", "[::1]:80", "192.0.2.7", "cats.localhost"} {
		reached(t, harness.Stack(t).Client(), "PUT", sys.URL+"/cat/x", host, harness.Cat).Want(t, 200)
		reached(t, harness.Stack(t).Client(), "GET", sys.SignerAPI+"/v1/link?user=x", host, nil, contract...).Want(t, 200)
		reached(t, harness.Stack(t).Client(), "GET", sys.FrontendOps+"/metrics", host, nil).Want(t, 200)
	}
}

func TestRebindingPagesReachNoPrometheus(t *testing.T) {
	t.Parallel()
	base := harness.StartPrometheus(t, harness.Start(t, stack.SystemOptions{}))
	for _, host := range rebound {
		reached(t, harness.Client(), "GET", base+"/api/v1/query?query=up", host, nil).Want(t, http.StatusMisdirectedRequest)
	}
	reached(t, harness.Client(), "GET", base+"/api/v1/query?query=up", "localhost:9090", nil).Want(t, 200)
}

func TestAllowedHostsAreServed(t *testing.T) {
	t.Parallel()
	sys := harness.Start(t, stack.SystemOptions{FrontendEnv: map[string]string{"ALLOWED_HOSTS": "cats.example.com,other.example"}})
	for host, status := range map[string]int{"cats.example.com": 200, "OTHER.example:8080": 200, "127.0.0.1:80": 200, "evil.example": 421, "x.cats.example.com": 421} {
		reached(t, harness.Client(), "PUT", sys.URL+"/cat/x", host, harness.Cat).Want(t, status)
	}
	sys = harness.Start(t, stack.SystemOptions{FrontendEnv: map[string]string{"ALLOWED_HOSTS": ""}})
	reached(t, harness.Client(), "PUT", sys.URL+"/cat/x", "evil.example", harness.Cat).Want(t, 200)
	harness.WaitForLog(t, sys.Frontend.Log, 0, "requests for any host name are accepted", "ALLOWED_HOSTS")
}
