package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cats.example/local/stack"
)

func TestPageListsLinkedModules(t *testing.T) {
	t.Parallel()
	root, err := stack.FindRoot()
	if err != nil {
		t.Fatal(err)
	}
	want, err := page(root)
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(root, "docs", "licenses.md"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(string(got), "\n")); diff != "" {
		t.Errorf("docs/licenses.md is out of date: run make licenses (- linked, + page):\n%s", diff)
	}
}

func TestIdentifyRejectsOtherLicenses(t *testing.T) {
	t.Parallel()
	const gpl = `This program is free software; you can redistribute it and/or modify it under
the terms of the GNU General Public License as published by the Free Software
Foundation; either version 2 of the License, or (at your option) any later version.

This program is distributed in the hope that it will be useful, but WITHOUT ANY
WARRANTY; without even the implied warranty of MERCHANTABILITY or FITNESS FOR A
PARTICULAR PURPOSE. See the GNU General Public License for more details.`
	const isc = `Permission to use, copy, modify, and/or distribute this software for any purpose
with or without fee is hereby granted, provided that the above copyright notice and
this permission notice appear in all copies.

THE SOFTWARE IS PROVIDED "AS IS" AND THE AUTHOR DISCLAIMS ALL WARRANTIES WITH
REGARD TO THIS SOFTWARE INCLUDING ALL IMPLIED WARRANTIES OF MERCHANTABILITY AND
FITNESS. IN NO EVENT SHALL THE AUTHOR BE LIABLE FOR ANY SPECIAL, DIRECT, INDIRECT,
OR CONSEQUENTIAL DAMAGES OR ANY DAMAGES WHATSOEVER RESULTING FROM LOSS OF USE, DATA
OR PROFITS, WHETHER IN AN ACTION OF CONTRACT, NEGLIGENCE OR OTHER TORTIOUS ACTION,
ARISING OUT OF OR IN CONNECTION WITH THE USE OR PERFORMANCE OF THIS SOFTWARE.`
	for name, text := range map[string]string{
		"copyleft":            gpl,
		"copyleft beside ISC": isc + "\n\n" + gpl,
		"ISC with conditions": isc + strings.Repeat("\nNot to be used by anybody whose name begins with a vowel, on a Monday, at sea.", 5),
		"unknown text":        "All rights reserved.",
		"empty text":          "",
	} {
		if ids, err := identify([]byte(text)); err == nil {
			t.Errorf("%s: got %v, want an error", name, ids)
		}
	}
	if ids, err := identify([]byte("Copyright (c) 2020 Somebody\n\n" + isc)); err != nil || len(ids) != 1 || ids[0] != "ISC" {
		t.Errorf("ISC: got %v, %v", ids, err)
	}
}

func TestModuleWithoutLicenseIsRejected(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	m := &module{dir: dir, folders: map[string]bool{dir: true}}
	if ids, err := m.licenses(); err == nil {
		t.Errorf("an empty folder: got %v, want an error", ids)
	}
}
