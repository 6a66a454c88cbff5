//go:build !cgo

package main

import "log"

func main() { log.Fatal("PKCS #11 needs cgo: install a C compiler") }
