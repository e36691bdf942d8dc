# /etc/profile has set Debian's own PATH just now.
PATH=/opt/labkit/venv/bin:$PATH
export PATH
