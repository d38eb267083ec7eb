package local

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/xml"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

// unsignedToken returns a bearer token without a signature, of which Azurite verifies the claims only.
func unsignedToken() string {
	part := base64.RawURLEncoding.EncodeToString
	now := time.Now().Unix()
	claims := fmt.Appendf(nil, `{"iss":"https://sts.windows.net/x/","aud":"https://storage.azure.com","oid":"o","tid":"t","iat":%d,"nbf":%[1]d,"exp":%d}`, now-60, now+3600)
	return part([]byte(`{"alg":"none","typ":"JWT"}`)) + "." + part(claims) + "."
}

func hmacSHA256(key []byte, lines ...string) []byte {
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(strings.Join(lines, "\n")))
	return mac.Sum(nil)
}

// delegationSAS signs a query that lists, reads, writes and deletes in container with a user delegation key of oid and tid.
func delegationSAS(container, oid, tid, start, end, keyVersion string, key []byte) string {
	const permissions, version = "racwdl", "2020-12-06"
	sig := hmacSHA256(key, permissions, "", end, "/blob/"+stack.Account+"/"+container,
		oid, tid, start, end, "b", keyVersion, "", "", "", "", "", version, "c", "", "", "", "", "", "", "")
	return url.Values{
		"sp": {permissions}, "se": {end}, "sv": {version}, "sr": {"c"}, "skoid": {oid}, "sktid": {tid}, "skt": {start}, "ske": {end},
		"sks": {"b"}, "skv": {keyVersion}, "sig": {base64.StdEncoding.EncodeToString(sig)},
	}.Encode()
}

func TestStorageFrontServesSignedURLsAlone(t *testing.T) {
	t.Parallel()
	sys := harness.StartDirect(t, stack.SystemOptions{})
	harness.Put(t, sys, "mia", harness.Cat)
	picture, _ := harness.Link(t, sys, "mia", "")
	u, err := url.Parse(picture)
	if err != nil {
		t.Fatal(err)
	}
	blob, container := u.Path, "/"+sys.Container
	sig := url.QueryEscape(u.Query().Get("sig"))
	bearer := "Bearer " + unsignedToken()

	// Azurite itself accepts the token, and gives a key by which it accepts any URL.
	start, end := time.Now().Add(-time.Hour).UTC().Format(time.RFC3339), time.Now().Add(time.Hour).UTC().Format(time.RFC3339)
	harness.Send(t, "GET", harness.Stack(t).Storage.URL+container+"?restype=container&comp=list", "", "Authorization", bearer).Want(t, 200)
	var key struct{ SignedVersion, Value string }
	info := fmt.Sprintf("<KeyInfo><Start>%s</Start><Expiry>%s</Expiry></KeyInfo>", start, end)
	if err := xml.Unmarshal(harness.Send(t, "POST", harness.Stack(t).Storage.URL+"/?restype=service&comp=userdelegationkey", info, "Authorization", bearer).Want(t, 200).Body, &key); err != nil {
		t.Fatal(err)
	}
	secret, err := base64.StdEncoding.DecodeString(key.Value)
	if err != nil {
		t.Fatal(err)
	}
	signed := delegationSAS(sys.Container, "o", "t", start, end, key.SignedVersion, secret)
	harness.Send(t, "GET", harness.Stack(t).FrontURL+container+"?restype=container&comp=list&"+signed, "").Want(t, 200)
	// The constant in Azurite's source, from which it derives keys by default.
	public := hmacSHA256([]byte("azurite-user-delegation-signing-seed-v1"), "o", "t", start, end, "b", key.SignedVersion)
	forged := delegationSAS(sys.Container, "o", "t", start, end, key.SignedVersion, public)

	account := "sv=2020-12-06&ss=b&srt=sco&sp=rwdlac&se=" + url.QueryEscape(end)
	service := "sv=2020-12-06&sr=c&sp=racwdl&se=" + url.QueryEscape(end)
	queries := []string{
		"", "sig", "sig=", "sig=junk", "sig=%00", "%73ig=junk", "%73ig=", "Sig=" + sig, "SIG=" + sig, "sig[]=" + sig, "sig[0]=" + sig, "sig=" + sig,
		"sig=" + sig + "&sig=" + sig, "sig=&sig=" + sig, "x;sig=" + sig, "sig=junk;sig=" + sig, "%zz&sig=" + sig, "x=1#sig=" + sig,
		account, account + "&sig=", account + "&sig=" + sig, service, service + "&sig=" + sig, service + "&sig=junk&si=policy",
		forged, strings.Replace(signed, "sig=", "sig=A", 1), strings.Replace(signed, "sp=", "sp=x", 1), strings.Replace(signed, "sig=", "Sig=", 1), signed + "&sig=A",
	}
	batch := "--b\r\nContent-Type: application/http\r\nContent-ID: 0\r\n\r\nDELETE " + blob + " HTTP/1.1\r\nAuthorization: " + bearer + "\r\nContent-Length: 0\r\n\r\n--b--\r\n"
	calls := []struct{ method, path, query, body string }{
		{"GET", "/", "comp=list", ""},
		{"GET", "/", "restype=service&comp=properties", ""},
		{"PUT", "/", "restype=service&comp=properties", "<StorageServiceProperties/>"},
		{"POST", "/", "restype=service&comp=userdelegationkey", info},
		{"GET", "/", "restype=account&comp=properties", ""},
		{"POST", "/", "comp=batch", batch},
		{"POST", container, "restype=container&comp=batch", batch},
		{"GET", container, "restype=container&comp=list", ""},
		{"GET", container, "restype=container", ""},
		{"PUT", container, "restype=container&comp=acl", ""},
		{"DELETE", container, "restype=container", ""},
		{"GET", blob, "", ""},
		{"HEAD", blob, "", ""},
		{"PUT", blob, "", "x"},
		{"PUT", blob, "comp=block&blockid=AAAA", "x"},
		{"DELETE", blob, "", ""},
	}
	credentials := []string{"", bearer, "bearer" + bearer[6:], "SharedKey " + stack.Account + ":" + sig, "SharedKeyLite " + stack.Account + ":" + sig, "Basic bWlhOm1pYQ=="}
	for i, c := range calls {
		for k, query := range queries {
			credential := credentials[(i+k)%len(credentials)]
			if k == 0 { // each, without a signature
				for _, credential := range credentials {
					rejects(t, c.method, c.path, c.query, c.body, credential)
				}
			}
			rejects(t, c.method, c.path, strings.Trim(c.query+"&"+query, "&"), c.body, credential)
			rejects(t, c.method, c.path, strings.Trim(query+"&"+c.query, "&"), c.body, bearer)
		}
	}
	harness.Send(t, "OPTIONS", harness.Stack(t).FrontURL+container+"?restype=container&comp=list", "", "X-HTTP-Method", "GET", "Authorization", bearer).Want(t, 400)

	a := harness.Send(t, "GET", harness.Stack(t).FrontURL+container+"?restype=container&comp=list", "", "Authorization", bearer).Want(t, 403)
	var answer struct{ Code, Message string }
	if err := xml.Unmarshal(a.Body, &answer); err != nil || answer.Code != "AuthenticationFailed" || a.Header.Get("X-Ms-Error-Code") != answer.Code || a.Header.Get("Content-Type") != "application/xml" || !strings.Contains(answer.Message, "GET /cat/{user}") {
		t.Errorf("the answer is %s, %v", a.Body, a.Header)
	}
	for _, credential := range credentials { // the URL counts, and nothing else
		if got := harness.Send(t, "GET", picture, "", "Authorization", credential).Want(t, 200).Body; !bytes.Equal(got, harness.Cat) {
			t.Error("a signed URL leads to another picture")
		}
	}
	harness.Send(t, "GET", strings.Replace(picture, "sig=", "%73ig=", 1), "").Want(t, 200) // the same parameter
	k := harness.NewUploadSession(t, sys, "mia", int64(len(harness.OtherPicture)))
	preflight := harness.Send(t, "OPTIONS", k.URL, "", "Origin", "http://localhost:8080", "Access-Control-Request-Method", "PUT", "Access-Control-Request-Headers", "content-type,x-ms-blob-type").Want(t, 200)
	if preflight.Header.Get("Access-Control-Allow-Origin") == "" {
		t.Errorf("the preflight is answered with %v", preflight.Header)
	}
	// Azurite copies a blob of the same account without a signature of the source.
	harness.Put(t, sys, "joe", harness.OtherPicture)
	for _, header := range [][]string{nil, {"X-Ms-Requires-Sync", "true"}, {"X-Ms-Blob-Type", "BlockBlob"}} {
		for _, source := range []string{harness.Stack(t).Storage.URL + container + "/joe/cat", harness.Stack(t).FrontURL + container + "/joe/cat", ""} {
			for _, query := range []string{"", "&comp=block&blockid=AAAA"} {
				a := harness.Send(t, "PUT", k.URL+query, "", append(header, "x-ms-copy-source", source)...).Want(t, 403)
				if a.Header.Get("X-Ms-Error-Code") != "CannotVerifyCopySource" {
					t.Errorf("the answer is %s", a.Body)
				}
			}
		}
	}
	k.Commit(t, sys, "mia", "").WantProblem(t, 404, "no_such_upload")
	k.Send(t, bytes.NewReader(harness.OtherPicture), int64(len(harness.OtherPicture)))
	k.Commit(t, sys, "mia", "").Want(t, 200)
}

// rejects sends a request to the storage front that must get nothing.
func rejects(t *testing.T, method, path, query, body, credential string) {
	t.Helper()
	header := []string{"Content-Type", "multipart/mixed; boundary=b", "X-Ms-Version", "2020-12-06", "X-Ms-Blob-Type", "BlockBlob", "X-Ms-Date", time.Now().UTC().Format(http.TimeFormat)}
	if credential != "" {
		header = append(header, "Authorization", credential)
	}
	target := harness.Stack(t).FrontURL + path
	if query != "" {
		target += "?" + query
	}
	a := harness.Send(t, method, target, body, header...)
	if a.StatusCode != 403 || bytes.Contains(a.Body, []byte("/cat")) && !bytes.Contains(a.Body, []byte("GET /cat/{user}")) {
		t.Errorf("%s %s with %.20q: %d %.300s; want 403", method, target, credential, a.StatusCode, a.Body)
	}
}
