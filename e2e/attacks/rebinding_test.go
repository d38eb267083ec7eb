package attacks

import (
	"bytes"
	"net/http"
	"testing"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

// reached sends a request with this Host header, as a page of the same origin does.
func reached(t *testing.T, c *http.Client, method, url, host string, body []byte) harness.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Host = host
	for name, value := range map[string]string{
		"Origin": "http://" + host, "Sec-Fetch-Site": "same-origin", "Cats-Contract": "1",
		"X-Ms-Blob-Type": "BlockBlob",
	} {
		req.Header.Set(name, value)
	}
	return harness.RoundTrip(t, c, req)
}

// After DNS rebinding, a page sends requests with the DNS name of its own origin to any listener of the machine.
func TestRebindingPagesReachNoListener(t *testing.T) {
	t.Parallel()
	sys := harness.StartDirect(t, stack.SystemOptions{FrontendEnv: map[string]string{"ALLOWED_HOSTS": "cats.example.com,other.example"}})
	prometheus := harness.StartPrometheus(t, sys) + "/api/v1/query?query=up"
	harness.Put(t, sys, "x", harness.Cat)
	picture, _ := harness.Link(t, sys, "x", "")
	upload := harness.NewUploadSession(t, sys, "x", int64(len(harness.Cat)))
	api, client := sys.SignerAPI, harness.Stack(t).Client()
	for _, c := range [][2]string{
		{"PUT", sys.URL + "/cat/x"},
		{"POST", sys.URL + "/cat/x/upload?size=1"},
		{"POST", sys.URL + "/cat/x/upload/" + upload.ID + "/commit"},
		{"DELETE", sys.URL + "/cat/x"},
		{"GET", sys.URL + "/cat/x"},
		{"GET", sys.URL + "/"},
		{"GET", sys.URL + "/nothing"},
		{"GET", sys.FrontendOps + "/metrics"},
		{"GET", sys.SignerOps + "/metrics"},
		{"GET", sys.SignerOps + "/readyz"},
		{"PUT", api + "/v1/picture?user=x"},
		{"DELETE", api + "/v1/picture?user=x"},
		{"GET", api + "/v1/link?user=x"},
		{"POST", api + "/v1/uploads?user=x&size=1"},
		{"POST", api + "/v1/commit?user=x&upload_id=" + upload.ID},
		{"GET", api + "/v1/about"},
		{"GET", api + "/v1/ready"},
		{"GET", api + "/"},
		{"POST", api + "/v2/picture"},
		{"GET", picture},
		{"PUT", upload.URL},
		{"GET", harness.Stack(t).FrontURL + "/?comp=list"},
		{"GET", harness.Stack(t).Cluster.URL() + "/.well-known/openid-configuration"},
		{"GET", prometheus},
	} {
		body := map[bool][]byte{true: harness.OtherPicture}[c[0] == "PUT"]
		for _, host := range []string{
			"evil.example:8080", "127.0.0.1.evil.example", "localhost.evil.example:80",
			"localhost.localdomain", "Evil.Example.", "x.cats.example.com",
		} {
			if a := reached(t, client, c[0], c[1], host, body); a.StatusCode != http.StatusMisdirectedRequest {
				t.Errorf("%s %s with Host %s: %d %.100s; want 421", c[0], c[1], host, a.StatusCode, a.Body)
			}
		}
	}
	harness.WantPicture(t, sys, "x", harness.Cat)
	for _, host := range []string{"localhost:8080", "127.0.0.1", "[::1]:80", "192.0.2.7", "cats.localhost"} {
		for _, url := range []string{api + "/v1/link?user=x", sys.FrontendOps + "/metrics", prometheus} {
			reached(t, client, "GET", url, host, nil).Want(t, 200)
		}
		reached(t, client, "PUT", sys.URL+"/cat/x", host, harness.Cat).Want(t, 200)
	}
	for _, host := range []string{"cats.example.com", "OTHER.example:8080"} {
		reached(t, client, "PUT", sys.URL+"/cat/x", host, harness.Cat).Want(t, 200)
	}
}
