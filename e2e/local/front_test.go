package local

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/xml"
	"fmt"
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
	claims := fmt.Appendf(nil, `{"iss":"https://sts.windows.net/x/","aud":"https://storage.azure.com","oid":"o","tid":"t",`+
		`"iat":%d,"nbf":%[1]d,"exp":%d}`, now-60, now+3600)
	return part([]byte(`{"alg":"none","typ":"JWT"}`)) + "." + part(claims) + "."
}

func sign(key []byte, lines ...string) []byte {
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(strings.Join(lines, "\n")))
	return mac.Sum(nil)
}

// delegationSAS signs a query with all permissions for container with a user delegation key of the identity o in the tenant t.
func delegationSAS(container, start, end, keyVersion string, key []byte) string {
	const permissions, version = "racwdl", "2020-12-06"
	sig := sign(key, permissions, "", end, "/blob/"+stack.Account+"/"+container, "o", "t", start, end, "b", keyVersion,
		"", "", "", "", "", version, "c", "", "", "", "", "", "", "")
	return url.Values{
		"sp": {permissions}, "se": {end}, "sv": {version}, "sr": {"c"}, "skoid": {"o"}, "sktid": {"t"}, "skt": {start}, "ske": {end},
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
	st, blob, container := harness.Stack(t), u.Path, "/"+sys.Container
	list, bearer := container+"?restype=container&comp=list", "Bearer "+unsignedToken()
	sig := url.QueryEscape(u.Query().Get("sig"))

	// Azurite itself accepts the unsigned token, and returns a key. URLs signed with the key are valid.
	start, end := time.Now().Add(-time.Hour).UTC().Format(time.RFC3339), time.Now().Add(time.Hour).UTC().Format(time.RFC3339)
	harness.Send(t, "GET", st.Storage.URL+list, "", "Authorization", bearer).Want(t, 200)
	var key struct{ SignedVersion, Value string }
	info := fmt.Sprintf("<KeyInfo><Start>%s</Start><Expiry>%s</Expiry></KeyInfo>", start, end)
	a := harness.Send(t, "POST", st.Storage.URL+"/?restype=service&comp=userdelegationkey", info, "Authorization", bearer)
	if err := xml.Unmarshal(a.Want(t, 200).Body, &key); err != nil {
		t.Fatal(err)
	}
	secret, err := base64.StdEncoding.DecodeString(key.Value)
	if err != nil {
		t.Fatal(err)
	}
	signed := delegationSAS(sys.Container, start, end, key.SignedVersion, secret)
	harness.Send(t, "GET", st.FrontURL+list+"&"+signed, "").Want(t, 200)
	// By default, Azurite derives keys from this constant in its source.
	public := sign([]byte("azurite-user-delegation-signing-seed-v1"), "o", "t", start, end, "b", key.SignedVersion)

	queries := harness.Table(t, "queries.txt", "SIGNED", signed, "SIG", sig, "FORGED", strings.Replace(signed, "sig=", "sig=A", 1),
		"MORE", strings.Replace(signed, "sp=", "sp=x", 1),
		"PUBLIC", delegationSAS(sys.Container, start, end, key.SignedVersion, public))
	credentials := []string{"", bearer, "SharedKey " + stack.Account + ":" + sig, "Basic bWlhOm1pYQ=="}
	batch := "--b\r\nContent-Type: application/http\r\nContent-ID: 0\r\n\r\n" +
		"DELETE " + blob + " HTTP/1.1\r\nAuthorization: " + bearer + "\r\nContent-Length: 0\r\n\r\n--b--\r\n"
	client := harness.Client()
	for i, row := range harness.Table(t, "targets.txt", "INFO", info, "BATCH", batch, "CONTAINER", container, "BLOB", blob) {
		for k, query := range append(queries, []string{""}) {
			credential, row := credentials[(i+k)%len(credentials)], append(row, "")
			a := harness.SendWith(t, client, row[0], st.FrontURL+row[1]+"&"+query[0], row[2], "Authorization", credential,
				"Content-Type", "multipart/mixed; boundary=b", "X-Ms-Version", "2020-12-06", "X-Ms-Blob-Type", "BlockBlob")
			if a.StatusCode != 403 || bytes.Contains(a.Body, []byte(blob)) {
				t.Errorf("%s&%s with %.20q: %d %.300s; want 403", row[:2], query[0], credential, a.StatusCode, a.Body)
			}
		}
	}

	if got := harness.Send(t, "GET", picture, "", "Authorization", bearer).Want(t, 200).Body; !bytes.Equal(got, harness.Cat) {
		t.Error("a signed URL returns another picture")
	}
	k := harness.NewUploadSession(t, sys, "mia", int64(len(harness.OtherPicture)))
	// Azurite copies a blob of the same account without a signature of the source.
	for _, source := range []string{st.Storage.URL + blob, st.FrontURL + blob, ""} {
		for _, query := range []string{"", "&comp=block&blockid=AAAA"} {
			a := harness.Send(t, "PUT", k.URL+query, "", "X-Ms-Blob-Type", "BlockBlob", "X-Ms-Copy-Source", source)
			if a.StatusCode != 403 || a.Header.Get("X-Ms-Error-Code") != "CannotVerifyCopySource" {
				t.Errorf("copying %q: %d %s", source, a.StatusCode, a.Body)
			}
		}
	}
	k.Commit(t, sys, "mia", "").WantProblem(t, 404, "no_such_upload")
}
