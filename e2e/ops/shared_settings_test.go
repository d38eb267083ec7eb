package ops

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

func TestFrontendNamesTheSharedSettingsThatDiffer(t *testing.T) {
	t.Parallel()
	harness.NeedStack(t)
	const issuer = "https://localhost:1"
	type env = map[string]string
	for name, c := range map[string]struct {
		frontend, signer env
		differ           []string
	}{
		"issuer of the frontend alone": {env{"OIDC_ISSUER": issuer}, nil, []string{"OIDC_ISSUER"}},
		"issuer of the signer alone":   {nil, env{"OIDC_ISSUER": issuer, "OIDC_AUDIENCE": "cats"}, []string{"OIDC_ISSUER"}},
		"issuers that differ by a slash": {
			env{"OIDC_ISSUER": issuer}, env{"OIDC_ISSUER": issuer + "/", "OIDC_AUDIENCE": "cats"}, []string{"OIDC_ISSUER"},
		},
		"discovery": {
			env{"OIDC_ISSUER": issuer, "OIDC_DISCOVERY_URL": issuer + "/b2c"}, env{"OIDC_ISSUER": issuer, "OIDC_AUDIENCE": "cats"}, []string{"OIDC_DISCOVERY_URL"},
		},
		"read access": {env{"READ_ACCESS": "anyone"}, nil, []string{"READ_ACCESS"}},
		"types":       {env{"ACCEPTED_TYPES": "image/png,image/gif"}, env{"ACCEPTED_TYPES": "image/png"}, []string{"ACCEPTED_TYPES"}},
		"a byte":      {env{"MAX_PICTURE_SIZE": "33554433"}, nil, []string{"MAX_PICTURE_SIZE"}},
		"several": {
			env{"MAX_PIXELS": "1000", "MAX_PICTURE_SIZE": "1MiB"}, env{"ACCEPTED_TYPES": "image/png"}, []string{"ACCEPTED_TYPES", "MAX_PICTURE_SIZE", "MAX_PIXELS"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sys := harness.Start(t, stack.SystemOptions{FrontendEnv: c.frontend, SignerEnv: c.signer, NotReady: true})
			for range 3 {
				a := harness.Do(t, "GET", sys.FrontendOps+"/readyz", "", nil).Want(t, 503)
				if want := "differ: " + strings.Join(c.differ, ", ") + ";"; !strings.Contains(string(a.Body), want) {
					t.Fatalf("/readyz says %s; want %s", a.Body, want)
				}
			}
			harness.WaitForLog(t, sys.Frontend.Log, 0, `"level":"ERROR"`, `"setting":"`+c.differ[0]+`"`)
			b, err := os.ReadFile(sys.Frontend.Log.Path())
			if err != nil {
				t.Fatal(err)
			}
			if n := bytes.Count(b, []byte("shared setting differs")); n != len(c.differ) {
				t.Errorf("%d lines of the log name settings; want %d", n, len(c.differ))
			}
			harness.Do(t, "GET", sys.FrontendOps+"/livez", "", nil).Want(t, 200) // a restart would not help
		})
	}
	t.Run("another order", func(t *testing.T) {
		t.Parallel()
		harness.Start(t, stack.SystemOptions{FrontendEnv: env{"ACCEPTED_TYPES": "image/png,image/gif", "MAX_PICTURE_SIZE": "1MiB"}, SignerEnv: env{"ACCEPTED_TYPES": "image/gif,image/png", "MAX_PICTURE_SIZE": "1048576"}})
	})
}

func TestSignerWithoutIssuerRejectsTokens(t *testing.T) {
	t.Parallel()
	p := harness.StartProvider(t, "0")
	opts := harness.WithAuthentication(p.Issuer, nil)
	opts.SignerEnv = map[string]string{"MAX_DIRECT_UPLOAD_SIZE": "1GiB"}
	sys := harness.StartDiffering(t, opts)
	picture, api := sys.URL+"/cat/mia", sys.SignerAPI
	const contract, version = "Cats-Contract", "1"
	harness.Send(t, "PUT", api+"/v1/picture?user=mia", string(harness.Cat), contract, version).Want(t, 200)
	var given harness.UploadSession
	if err := json.Unmarshal(harness.Send(t, "POST", fmt.Sprintf("%s/v1/uploads?user=mia&size=%d", api, len(harness.OtherPicture)), "", contract, version).Want(t, 200).Body, &given); err != nil {
		t.Fatal(err)
	}
	given.Send(t, bytes.NewReader(harness.OtherPicture), int64(len(harness.OtherPicture)))
	before, err := sys.Blobs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	formType, form := harness.Form(t, harness.OtherPicture)
	for _, token := range []string{"mew", "mew.mew.mew", p.Token(t, "mia", harness.Audience), p.Token(t, "tom", harness.Audience)} {
		for _, a := range []harness.Response{
			harness.SendAs(t, token, "PUT", picture, harness.OtherPicture),
			harness.SendAs(t, token, "POST", picture, form, "Content-Type", formType),
			harness.SendAs(t, token, "DELETE", picture, nil),
			harness.SendAs(t, token, "GET", picture, nil),
			harness.SendAs(t, token, "GET", picture+"/picture", nil),
			harness.SendAs(t, token, "POST", picture+"/upload?size=9", nil),
			harness.SendAs(t, token, "POST", picture+"/upload/"+given.ID+"/commit", nil),
		} {
			a.WantProblem(t, 503, "misconfigured")
		}
		harness.SendAs(t, token, "PUT", api+"/v1/picture?user=mia", harness.OtherPicture, contract, version).Want(t, 503)
		harness.SendAs(t, token, "DELETE", api+"/v1/picture?user=mia", nil, contract, version).Want(t, 503)
		harness.SendAs(t, token, "GET", api+"/v1/link?user=mia", nil, contract, version).Want(t, 503)
	}
	harness.SendAs(t, "", "PUT", picture, harness.OtherPicture).WantProblem(t, 401, "unauthenticated")
	after, err := sys.Blobs(t.Context())
	if diff := cmp.Diff(before, after); err != nil || diff != "" {
		t.Errorf("storage has changed: %v\n%s", err, diff)
	}
	harness.WaitForLog(t, sys.Signer.Log, 0, `"http.response.status_code":503`, "misconfigured")
	harness.WantNoSecrets(t, sys)
}

// A setting is compared where its tag says so; the help tells of the tag.
func TestBothContainersHaveTheSameSharedSettings(t *testing.T) {
	harness.NeedOwnSystem(t)
	entry := regexp.MustCompile(`(?m)^  ([A-Z_]+).*\n      .*; must be equal in both containers$`)
	names := map[string][]string{}
	for _, program := range []string{"frontend", "signer"} {
		help, err := exec.CommandContext(t.Context(), filepath.Join(harness.BinDir(t), program), "--help").Output()
		if err != nil {
			t.Fatal(err)
		}
		found := map[string]bool{}
		for _, m := range entry.FindAllSubmatch(help, -1) {
			found[string(m[1])] = true
		}
		names[program] = slices.Sorted(maps.Keys(found))
	}
	if diff := cmp.Diff(names["frontend"], names["signer"]); diff != "" || len(names["signer"]) < 6 {
		t.Errorf("frontend (-), signer (+) of %q:\n%s", names["signer"], diff)
	}
}
