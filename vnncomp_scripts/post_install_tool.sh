#!/usr/bin/env bash
# post_install_tool.sh: the place for licences. None is needed: linear and integer programs are solved by HiGHS.
echo "nothing to do: no part of the tool needs a licence"
