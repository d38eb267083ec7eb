// Command licences writes docs/licences.md: what the programs link, and under which
// licences. It runs in the checkout.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/google/licensecheck"

	"cats.example/local/stack"
)

// programs are what the images hold, and the command, each as the folder of its module
// and its package there.
var programs = []struct{ name, module, pkg string }{
	{"frontend", "frontend", "."},
	{"signer", "signer", "."},
	{"emulator", "local", "./emulator"},
	{"cats", "local", "./cats"},
}

// allowed are the licences that may be linked, each with what it asks for.
var allowed = map[string]string{
	"Apache-2.0":   "the text and the notices go with the binary",
	"BSD-2-Clause": "the text goes with the binary",
	"BSD-3-Clause": "the text goes with the binary",
	"ISC":          "the text goes with the binary",
	"MIT":          "the text goes with the binary",
	"MPL-2.0":      "the text goes with the binary, and its source stays to be had: it is linked unchanged, as the Go module proxy has it",
	"Unlicense":    "nothing",
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "licences:", err)
		os.Exit(1)
	}
}

func run() error {
	root, err := stack.FindRoot()
	if err != nil {
		return err
	}
	text, err := page(root)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(root, "docs", "licences.md"), text, 0o644) //nolint:gosec // a page of the documentation
}

// page returns what docs/licences.md has to be for the checkout at root. It is an
// error when something is linked under a licence that is not allowed or not known.
func page(root string) ([]byte, error) {
	linked := map[string]*module{}
	for i, p := range programs {
		if err := collect(linked, i, filepath.Join(root, p.module), p.pkg); err != nil {
			return nil, fmt.Errorf("what %s links: %w", p.name, err)
		}
	}
	var table strings.Builder
	var faults []error
	asked := map[string]bool{}
	for _, path := range slices.Sorted(maps.Keys(linked)) {
		m := linked[path]
		found, err := m.licences()
		if err != nil {
			faults = append(faults, fmt.Errorf("%s: %w", path, err))
			continue
		}
		fmt.Fprintf(&table, "| `%s` | %s |", path, strings.Join(found, ", "))
		for _, in := range m.in {
			fmt.Fprintf(&table, " %s |", map[bool]string{true: "✓"}[in])
		}
		table.WriteString("\n")
		for _, l := range found {
			asked[l] = true
		}
	}
	if err := errors.Join(faults...); err != nil {
		return nil, err
	}

	var b bytes.Buffer
	b.WriteString("# Licences\n\nWhat the programs link, and under which licences; `make licences` writes this page, and a test compares it with the code. " +
		"The images have the texts themselves in `/licences`.\n\n| module | licence | frontend | signer | emulator | cats |\n| --- | --- | --- | --- | --- | --- |\n")
	b.WriteString(table.String())
	b.WriteString("\n| licence | asks for |\n| --- | --- |\n")
	for _, l := range slices.Sorted(maps.Keys(asked)) {
		fmt.Fprintf(&b, "| %s | %s |\n", l, allowed[l])
	}
	b.WriteString("\nThe frontend holds Swagger UI, out of swgui (Apache-2.0, as Swagger UI itself is); what its bundle is made of (MIT, BSD-3-Clause, Apache-2.0) is in `frontend/internal/web/docs/swagger-ui-bundle.js.LICENSE.txt`, which the frontend serves beside it.\n")
	b.WriteString("\nNothing else may be linked: the command refuses it. `make run` and the tests also use, in no image of this project, npm's Azurite (MIT) and what it depends on: `local/package-lock.json` has the licence of each.\n")
	return b.Bytes(), nil
}

// module is one that programs link, with the folders of the packages that they do.
type module struct {
	dir     string
	folders map[string]bool
	in      [4]bool // by the index in programs
}

// collect adds the modules that the package links, as it is built for an image.
func collect(linked map[string]*module, program int, dir, pkg string) error {
	cmd := exec.Command("go", "list", "-deps", "-json=Dir,Standard,Module", pkg) //nolint:gosec,noctx // of the list above; ends by itself
	cmd.Dir, cmd.Stderr = dir, os.Stderr
	cmd.Env = append(os.Environ(), "GOWORK=off", "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("go list: %w", err)
	}
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p struct {
			Dir      string
			Standard bool
			Module   *struct{ Path, Dir string }
		}
		if err := dec.Decode(&p); err == io.EOF {
			return nil
		} else if err != nil {
			return fmt.Errorf("go list: %w", err)
		}
		path, root := "std", ""
		switch {
		case p.Standard:
			// The one below it is of BoringSSL's object file, which is not linked.
			root = goroot(p.Dir)
			p.Dir = root
		case strings.HasPrefix(p.Module.Path, "cats.example/"):
			continue
		default:
			path, root = p.Module.Path, p.Module.Dir
		}
		m := linked[path]
		if m == nil {
			m = &module{dir: root, folders: map[string]bool{}}
			linked[path] = m
		}
		m.folders[p.Dir] = true
		m.in[program] = true
	}
}

// goroot returns the folder of Go, of which dir is a package of the standard library.
func goroot(dir string) string {
	before, _, _ := strings.Cut(filepath.ToSlash(dir)+"/", "/src/")
	return before
}

// licences returns those of the module: of its root and of the folders, up to
// there, that are linked.
func (m *module) licences() ([]string, error) {
	looked, found := map[string]bool{}, map[string]bool{}
	for folder := range m.folders {
		for dir := folder; len(dir) >= len(m.dir) && !looked[dir]; dir = filepath.Dir(dir) {
			looked[dir] = true
			entries, err := os.ReadDir(dir)
			if err != nil {
				return nil, err
			}
			for _, e := range entries {
				if !isLicence(e) {
					continue
				}
				text, err := os.ReadFile(filepath.Join(dir, e.Name())) //nolint:gosec // of the module cache
				if err != nil {
					return nil, err
				}
				ids, err := recognise(text)
				if err != nil {
					return nil, fmt.Errorf("%s: %w", e.Name(), err)
				}
				for _, id := range ids {
					found[id] = true
				}
			}
		}
	}
	if len(found) == 0 {
		return nil, errors.New("has no licence")
	}
	return slices.Sorted(maps.Keys(found)), nil
}

func isLicence(e fs.DirEntry) bool {
	name := strings.ToUpper(e.Name())
	return e.Type().IsRegular() && filepath.Ext(name) != ".GO" &&
		(strings.HasPrefix(name, "LICENSE") || strings.HasPrefix(name, "LICENCE") || strings.HasPrefix(name, "COPYING"))
}

// scanner knows the licences that are allowed, and those most wanted to be seen where
// they are a small part of a text. Of all others it says that it does not know the
// text, which is refused as well; with all 551 it would take seconds to start.
var scanner = sync.OnceValues(func() (*licensecheck.Scanner, error) {
	var known []licensecheck.License
	for _, l := range licensecheck.BuiltinLicenses() {
		if _, ok := allowed[l.ID]; ok || regexp.MustCompile(`GPL|^(SSPL|BUSL|CC-BY|OpenSSL|Commons)`).MatchString(l.ID) {
			known = append(known, l)
		}
	}
	return licensecheck.NewScanner(known)
})

// recognise returns the SPDX identifiers of the licences in a text. All of them must
// be allowed, and hardly anything else may be in it.
func recognise(text []byte) ([]string, error) {
	s, err := scanner()
	if err != nil {
		return nil, err
	}
	cov := s.Scan(text)
	if cov.Percent < 75 {
		return nil, fmt.Errorf("only %.0f %% of it is the text of a known licence", cov.Percent)
	}
	var ids []string
	for _, m := range cov.Match {
		if _, ok := allowed[m.ID]; !ok {
			return nil, fmt.Errorf("%s is not among the licences that may be linked", m.ID)
		}
		ids = append(ids, m.ID)
	}
	return ids, nil
}
