package main

import (
	"bytes"
	"image"
	"image/color"
	"image/png"
)

// pixels is a picture to try the system with.
var pixels = [...]string{
	"................",
	"..#.........#...",
	"..##.......##...",
	"..#o#.....#o#...",
	"..#oo#####oo#...",
	"..#ooooooooo#...",
	"..#ow#ooow#o#...",
	"..#o##ooo##o#...",
	"..#oooopoooo#...",
	"..#ooo#o#ooo#...",
	"...#ooo#ooo#....",
	"....#######...#.",
	"...#ooooooo#.#o#",
	"..#ooooooooo##o#",
	"..#oo#ooo#ooooo#",
	"..############..",
}

// cat returns pixels as a PNG, each of them 16 by 16.
func cat() []byte {
	const scale = 16
	palette := color.Palette{
		color.RGBA{0xdf, 0xef, 0xff, 0xff},
		color.RGBA{0x30, 0x20, 0x18, 0xff},
		color.RGBA{0xf0, 0xa0, 0x40, 0xff},
		color.RGBA{0xff, 0xff, 0xff, 0xff},
		color.RGBA{0xff, 0x80, 0x90, 0xff},
	}
	colours := map[byte]uint8{'.': 0, '#': 1, 'o': 2, 'w': 3, 'p': 4}
	img := image.NewPaletted(image.Rect(0, 0, len(pixels[0])*scale, len(pixels)*scale), palette)
	for y := range img.Rect.Dy() {
		for x := range img.Rect.Dx() {
			img.SetColorIndex(x, y, colours[pixels[y/scale][x/scale]])
		}
	}
	var b bytes.Buffer
	if err := png.Encode(&b, img); err != nil {
		panic(err) // a buffer takes everything
	}
	return b.Bytes()
}
